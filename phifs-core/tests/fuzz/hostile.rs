//! Bytes that somebody may send: anything, or something that makes sense and was changed here and there.

use bolero::TypeGenerator;

#[derive(Clone, Debug, TypeGenerator)]
pub enum Hostile {
    Any(Vec<u8>),
    Edited {
        seed: u16,
        #[generator(bolero::produce::<Vec<Edit>>().with().len(0..5usize))]
        edits: Vec<Edit>,
    },
}

/// Places are taken modulo the length.
#[derive(Clone, Debug, TypeGenerator)]
pub enum Edit {
    Set {
        at: u32,
        to: u8,
    },
    Flip {
        at: u32,
        bit: u8,
    },
    Put {
        at: u32,
        bytes: Vec<u8>,
    },
    /// As lengths and counts are written.
    Number {
        at: u32,
        number: u64,
    },
    Take {
        at: u32,
        len: u8,
    },
    Cut {
        at: u32,
    },
    Again {
        at: u32,
        len: u8,
    },
}

impl Hostile {
    pub fn made_of(&self, seeds: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Any(bytes) => bytes.clone(),
            Self::Edited { seed, edits } => {
                let mut bytes = seeds[usize::from(*seed) % seeds.len()].clone();
                edits.iter().for_each(|edit| edit.apply(&mut bytes));
                bytes
            }
        }
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: u32| at as usize % (bytes.len() + 1);
        let part = |at: u32, len: u8| place(at)..bytes.len().min(place(at) + usize::from(len));
        match self {
            Self::Set { at, to } => {
                let at = place(*at);
                bytes.splice(at..bytes.len().min(at + 1), [*to]);
            }
            Self::Flip { at, bit } => {
                let at = place(*at);
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (bit % 8));
            }
            Self::Put { at, bytes: put } => {
                let at = place(*at);
                bytes.splice(at..at, put.iter().copied());
            }
            Self::Number { at, number } => {
                let mut encoded = Vec::new();
                phifs_core::codec::Encode::put_varint(&mut encoded, number >> (number % 64));
                let at = place(*at);
                bytes.splice(at..bytes.len().min(at + 1), encoded);
            }
            Self::Take { at, len } => drop(bytes.drain(part(*at, *len))),
            Self::Cut { at } => bytes.truncate(place(*at)),
            Self::Again { at, len } => {
                let again = bytes[part(*at, *len)].to_vec();
                let at = place(*at);
                bytes.splice(at..at, again);
            }
        }
    }
}
