//! A moment in the life of a volume, as a word that people and programs carry from one machine to another: whoever waits
//! for it there finds everything that was there when it was made.

use std::fmt;
use std::str::FromStr;

use crate::causal::VersionVector;
use crate::codec::{self, Encode, Reader};

use super::word::{Word, WordError};

const WORD: Word = Word { prefix: "phit1-", check: "phifs moment check v1", text_bytes_max: 48 << 10 };
const VERSION: u8 = 1;

/// What was known somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub volume: [u8; 16],
    pub context: VersionVector,
}

impl Moment {
    fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a moment", VERSION)?;
        let (volume, context) = (reader.array()?, VersionVector::decode(&mut reader)?);
        reader.finish()?;
        Ok(Self { volume, context })
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.put_bytes(&self.volume);
        self.context.encode(&mut bytes);
        f.write_str(&WORD.write(&bytes))
    }
}

impl FromStr for Moment {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        Ok(Self::decode(&WORD.read(text)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AuthorId;

    #[test]
    fn a_moment_is_read_as_it_was_written_and_nothing_else_is_one() {
        let context = VersionVector::new().with(AuthorId([3; 16]), 9);
        let moment = Moment { volume: [1; 16], context };
        let text = moment.to_string();
        assert_eq!(text.parse(), Ok(moment.clone()));
        assert_eq!(text.to_uppercase().parse(), Ok(moment));
        assert_eq!("phi1-abc".parse::<Moment>(), Err(WordError::Foreign("phit1-")));
        for at in "phit1-".len()..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(other).unwrap().parse::<Moment>().is_err(), "letter {at}");
            assert!(text[..at].parse::<Moment>().is_err(), "cut at {at}");
        }
    }
}
