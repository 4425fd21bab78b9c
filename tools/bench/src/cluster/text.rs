//! Text that compresses about as well as people's, and no two of it alike.

const WORDS: [&str; 64] = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "is",
    "was",
    "he",
    "for",
    "it",
    "with",
    "as",
    "his",
    "on",
    "be",
    "at",
    "by",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
    "an",
    "they",
    "which",
    "one",
    "you",
    "were",
    "her",
    "machine",
    "volume",
    "file",
    "directory",
    "network",
    "between",
    "nothing",
    "because",
    "another",
    "through",
    "question",
    "written",
    "morning",
    "mountain",
    "remember",
    "together",
    "difference",
    "somebody",
    "yesterday",
    "paper",
    "letter",
    "answer",
    "bridge",
    "winter",
    "cellar",
    "window",
    "garden",
    "harbour",
    "engine",
    "number",
    "station",
    "weather",
];

pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut text = Vec::with_capacity(len + 16);
    while text.len() < len {
        match rng.u8(..12) {
            0 => text.extend_from_slice(rng.u32(..).to_string().as_bytes()),
            _ => text.extend_from_slice(WORDS[rng.usize(..WORDS.len())].as_bytes()),
        }
        text.push(if rng.u8(..12) == 0 { b'\n' } else { b' ' });
    }
    text.truncate(len);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_and_compress() {
        assert_ne!(text(1, 1000), text(2, 1000));
        assert_eq!(text(1, 1000), text(1, 1000));
        let packed = zstd::bulk::compress(&text(1, 1000), 1).unwrap().len();
        assert!((300..700).contains(&packed), "{packed} of 1000 bytes");
    }
}
