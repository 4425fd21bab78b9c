//! How names and numbers are printed. Names are arbitrary bytes: in text they are quoted so that a shell reads back the
//! same bytes and a terminal obeys none of them; in JSON they are text, with the bytes beside it where text loses some.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub use phifs_core::time::utc;
use phifs_core::volume::FileKind;
use serde::{Deserialize, Serialize};

/// Quotes `bytes` for a POSIX shell: plain where that is safe, `'..'` where it needs quotes, and `$'..'` with octal
/// escapes where it holds control characters, invisible ones or bytes that are not UTF-8.
pub fn quote(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(hides)
    {
        if !text.is_empty() && !text.starts_with(['~', '-']) && text.chars().all(plain) {
            return text.to_owned();
        }
        if !text.contains('\'') {
            return format!("'{text}'");
        }
    }
    let mut quoted = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => quoted.push_str("\\n"),
                '\t' => quoted.push_str("\\t"),
                '\r' => quoted.push_str("\\r"),
                '\'' | '\\' => quoted.extend(['\\', c]),
                c if hides(c) => push_octal(&mut quoted, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => quoted.push(c),
            }
        }
        push_octal(&mut quoted, chunk.invalid());
    }
    quoted.push('\'');
    quoted
}

/// [`quote`] for a path.
pub fn path(path: &Path) -> String {
    quote(path.as_os_str().as_bytes())
}

/// Characters that a shell leaves alone wherever they stand (behind the first place).
fn plain(c: char) -> bool {
    c.is_alphanumeric() || "/._-+,:@%=~".contains(c)
}

/// Characters that a reader would not see as what they are: controls, zero-width ones, marks that turn the direction.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn push_octal(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Three digits always, so that a digit that follows does not become part of the escape.
        write!(out, "\\{byte:03o}").expect("writing to a string");
    }
}

/// What kind of inode it is, in words.
pub fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// A name in JSON: text for people, and all its bytes where the text is not the whole truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_hex: Option<String>,
}

impl Name {
    pub fn new(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: text.to_owned(), bytes_hex: None },
            Err(_) => {
                Self { text: String::from_utf8_lossy(bytes).into_owned(), bytes_hex: Some(crate::hex::encode(bytes)) }
            }
        }
    }

    pub fn of_path(path: &Path) -> Self {
        Self::new(path.as_os_str().as_bytes())
    }

    /// The bytes it was made of. A `bytes_hex` that is not hexadecimal counts as absent.
    pub fn bytes(&self) -> Vec<u8> {
        let hex = self.bytes_hex.as_deref().and_then(crate::hex::decode);
        hex.unwrap_or_else(|| self.text.clone().into_bytes())
    }

    pub fn quoted(&self) -> String {
        quote(&self.bytes())
    }
}

/// A size with three significant digits in binary units: `512 B`, `1.50 KiB`, `23.4 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A time span in its two largest units: `12 s`, `3 min 5 s`, `2 d 4 h`.
pub fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..86400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86400, secs / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_quoted_only_as_far_as_they_need_it() {
        assert_eq!(quote(b"a/plain-name_1.txt"), "a/plain-name_1.txt");
        assert_eq!(quote("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(quote(b"two words"), "'two words'");
        assert_eq!(quote(b"$(reboot)"), "'$(reboot)'");
        assert_eq!(quote(b""), "''");
        assert_eq!(quote(b"-rf"), "'-rf'");
        assert_eq!(quote(b"~root"), "'~root'");
        assert_eq!(quote(b"it's"), "$'it\\'s'");
        assert_eq!(quote(b"line\nbreak"), "$'line\\nbreak'");
        assert_eq!(quote(b"\x1b[2J"), "$'\\033[2J'");
        assert_eq!(quote(b"\xff1"), "$'\\3771'");
        assert_eq!(quote("txt\u{202e}exe".as_bytes()), "$'txt\\342\\200\\256exe'");
    }

    #[test]
    fn json_names_carry_their_bytes_only_where_text_loses_them() {
        assert_eq!(serde_json::to_string(&Name::new(b"a\nb")).unwrap(), r#"{"text":"a\nb"}"#);
        let lossy = Name::new(b"a\xffb");
        assert_eq!(lossy.bytes_hex.as_deref(), Some("61ff62"));
        assert_eq!(lossy.bytes(), b"a\xffb");
    }

    #[test]
    fn sizes_and_spans_read_well() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.50 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        assert_eq!(size(1024 * 1024 - 1), "1.00 MiB");
        assert_eq!(span(185), "3 min 5 s");
    }

    proptest! {
        #[test]
        fn quoted_names_never_hold_a_control_character(bytes: Vec<u8>) {
            let quoted = quote(&bytes);
            prop_assert!(!quoted.chars().any(hides), "{quoted:?}");
            prop_assert_eq!(Name::new(&bytes).bytes(), bytes);
        }
    }
}
