//! Bytes that a checker can make again: every content is a function of a seed and a version.

/// The bytes of one version of a thing. Half of the versions compress well, as half of the world's files do.
pub fn content(seed: u64, version: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(mix(seed, version));
    let mut bytes = vec![0; len];
    if rng.bool() {
        rng.fill(&mut bytes);
    } else {
        let line = format!("version {version} of {seed:x}, {:x};\n", rng.u32(..));
        bytes.iter_mut().zip(line.bytes().cycle()).for_each(|(to, from)| *to = from);
    }
    bytes
}

/// Bytes that do not compress, whatever the seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// The length of one version of a thing: mostly small, sometimes of many chunks.
pub fn length(seed: u64, version: u64, max: usize) -> usize {
    let mut rng = fastrand::Rng::with_seed(mix(seed, !version));
    let max = if rng.u8(..8) == 0 { max } else { max / 16 };
    rng.usize(0..=max)
}

fn mix(seed: u64, version: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0xd1b5_4a32_d192_ed03)
}
