//! Keys as bit strings.
//!
//! Each byte of a key counts as nine bits, a 1 that says "there is more" and then the byte, highest bit first; the end
//! is one 0 bit. So no key is a prefix of another, and the order of bit strings is the byte order of keys.

/// How many leading bytes two strings share.
pub(super) fn common_bytes(a: &[u8], b: &[u8]) -> usize {
    let len = a.len().min(b.len());
    let mut at = 0;
    while let (Some(x), Some(y)) = (a[at..len].first_chunk::<8>(), b[at..len].first_chunk::<8>()) {
        let difference = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if difference != 0 {
            return at + difference.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < len && a[at] == b[at] {
        at += 1;
    }
    at
}

/// The position of the first bit in which two keys differ; `u32::MAX` if they are equal.
pub(super) fn critical_bit(a: &[u8], b: &[u8]) -> u32 {
    let common = common_bytes(a, b);
    match (a.get(common), b.get(common)) {
        (Some(x), Some(y)) => common as u32 * 9 + 1 + (x ^ y).leading_zeros(),
        (None, None) => u32::MAX,
        _ => common as u32 * 9,
    }
}

/// The length of a key's bit string.
pub(super) fn bit_len(key_bytes: usize) -> u32 {
    key_bytes as u32 * 9 + 1
}

const _: () = assert!(super::KEY_BYTES_MAX * 9 < u16::MAX as usize, "prefix lengths and levels are 16-bit numbers");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn bit_string(key: &[u8]) -> Vec<bool> {
        let mut bits = Vec::new();
        for byte in key {
            bits.push(true);
            bits.extend((0..8).map(|bit| byte & (0x80 >> bit) != 0));
        }
        bits.push(false);
        bits
    }

    proptest! {
        #[test]
        fn critical_bit_is_where_the_bit_strings_part(
            common in proptest::collection::vec(any::<u8>(), 0..20),
            a in proptest::collection::vec(any::<u8>(), 0..12),
            b in proptest::collection::vec(any::<u8>(), 0..12),
        ) {
            let a = [&common[..], &a].concat();
            let b = [&common[..], &b].concat();
            let (x, y) = (bit_string(&a), bit_string(&b));
            prop_assert_eq!(a.cmp(&b), x.cmp(&y), "bits keep the order");
            prop_assert_eq!(bit_len(a.len()) as usize, x.len());
            let parts_at = x.iter().zip(&y).position(|(p, q)| p != q);
            prop_assert_eq!(critical_bit(&a, &b), parts_at.map_or(u32::MAX, |at| at as u32));
        }
    }
}
