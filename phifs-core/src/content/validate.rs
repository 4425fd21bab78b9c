//! Whether a file's bytes are what they seem to be: the format that their first bytes promise, and whether they keep
//! the promise. So a torn or half-written file never wins over a whole one.
//!
//! The verdict is a function of the bytes alone. It costs next to nothing: a file up to [`WHOLE_MAX`] is looked at
//! whole if it seems to be text, every other one at its head and its tail.
//!
//! | form | begins with | passes if |
//! | --- | --- | --- |
//! | text | UTF-8 without a zero | all of it is; of a long one the head and the tail |
//! | JSON | `{` or `[`, spaces before it | it parses; only up to `WHOLE_MAX`, longer it is text |
//! | zip | a local file header, or the end of an empty archive | the end of the central directory ends it |
//! | SQLite | its header | the length is the page size times the number of pages |
//! | PNG | its signature | the end chunk ends it |

use crate::content::Content;
use crate::content::manifest::{Cursor, What};
use crate::id::GlyphId;
use crate::store::GlyphSource;

/// Text and JSON up to this length are looked at whole.
pub const WHOLE_MAX: u64 = 1 << 20;
/// How much of the head and of the tail of other files is looked at.
const HEAD: usize = 4096;
/// The end of a zip file's central directory lies this close to its end: 22 bytes and a comment.
const ZIP_TAIL: u64 = 22 + 0xffff;

/// What the first bytes promise. The numbers are part of the format of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Nothing that is known here.
    #[default]
    Opaque = 0,
    Text = 1,
    Json = 2,
    Zip = 3,
    Sqlite = 4,
    Png = 5,
}

impl Form {
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Opaque, Self::Text, Self::Json, Self::Zip, Self::Sqlite, Self::Png].get(usize::from(number)).copied()
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Opaque => "of no known format",
            Self::Text => "text",
            Self::Json => "JSON",
            Self::Zip => "a zip archive",
            Self::Sqlite => "an SQLite database",
            Self::Png => "a PNG image",
        })
    }
}

/// What became of looking at a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub form: Form,
    /// Whether the bytes keep what their form promises. What is opaque promises nothing and never passes.
    pub passes: bool,
}

/// Looks at a file of `len` bytes. `read_at` fills the buffer with the bytes at an offset, all of them within the file.
pub fn validate<E>(len: u64, mut read_at: impl FnMut(&mut [u8], u64) -> Result<(), E>) -> Result<Verdict, E> {
    let mut read = |offset: u64, len: u64| -> Result<Vec<u8>, E> {
        let mut bytes = vec![0; len as usize];
        read_at(&mut bytes, offset)?;
        Ok(bytes)
    };
    let head = read(0, len.min(HEAD as u64))?;
    let form = form_of(&head, len);
    let passes = match form {
        Form::Opaque => false,
        Form::Zip => {
            let tail = len.min(ZIP_TAIL);
            // Most have no comment.
            let short = tail.min(HEAD as u64);
            ends_zip(&read(len - short, short)?) || tail > short && ends_zip(&read(len - tail, tail)?)
        }
        Form::Sqlite => is_sqlite_of(&head, len),
        Form::Png => len >= 12 && read(len - 12, 12)? == PNG_END,
        Form::Text | Form::Json if len <= HEAD as u64 => is_whole(form, &head),
        Form::Text | Form::Json if len <= WHOLE_MAX => is_whole(form, &read(0, len)?),
        Form::Text | Form::Json => is_text_from(&read(len - HEAD as u64, HEAD as u64)?),
    };
    Ok(Verdict { form, passes })
}

/// Looks at a file all of whose bytes are here.
pub fn validate_bytes(bytes: &[u8]) -> Verdict {
    let read_at = |buf: &mut [u8], offset: u64| -> Result<(), std::convert::Infallible> {
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    };
    let Ok(verdict) = validate(bytes.len() as u64, read_at);
    verdict
}

/// Whether a content is nothing but zeroes, or nothing at all. Known by the names of its glyphs: none is read, and of a
/// content that is more than that hardly ever more than one page.
pub fn is_blank(content: Content, glyphs: &dyn GlyphSource) -> super::Result<bool> {
    let (mut zeroes_len, mut zeroes_id) = (0, None);
    let mut cursor = Cursor::new(content);
    let mut at = 0;
    while let Some(span) = cursor.find(glyphs, at)? {
        if let What::Glyph(id) = span.extent.what {
            // All but the last are of one length, as nothing in zeroes makes the chunker cut early.
            if zeroes_id.is_none() || zeroes_len != span.extent.len_bytes {
                zeroes_len = span.extent.len_bytes;
                zeroes_id = Some(GlyphId::of(&vec![0; zeroes_len as usize]));
            }
            if zeroes_id != Some(id) {
                return Ok(false);
            }
        }
        at = span.end();
    }
    Ok(true)
}

const ZIP_FILE: &[u8] = b"PK\x03\x04";
const ZIP_END: &[u8] = b"PK\x05\x06";
const SQLITE: &[u8] = b"SQLite format 3\0";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// The chunk of no bytes that every PNG ends with, and its checksum.
const PNG_END: &[u8] = b"\0\0\0\0IEND\xaeB`\x82";

fn form_of(head: &[u8], len: u64) -> Form {
    if head.starts_with(ZIP_FILE) || head.starts_with(ZIP_END) {
        return Form::Zip;
    }
    if head.starts_with(SQLITE) {
        return Form::Sqlite;
    }
    if head.starts_with(PNG) {
        return Form::Png;
    }
    if head.is_empty() || !is_text_up_to(head, head.len() as u64 == len) {
        return Form::Opaque;
    }
    if len <= WHOLE_MAX && begins_json(head) { Form::Json } else { Form::Text }
}

/// Whether text begins as an object or an array does. The headings of TOML and INI files begin with a bracket as well.
fn begins_json(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    if let Some(inside) = text.strip_prefix(b"{") {
        return matches!(inside.trim_ascii_start().first(), Some(b'"' | b'}'));
    }
    let inside = text.iter().position(|byte| *byte != b'[' && !byte.is_ascii_whitespace());
    let Some(inside) = inside.map(|at| &text[at..]).filter(|_| text.starts_with(b"[")) else { return false };
    matches!(inside[0], b'{' | b'"' | b']' | b'-' | b'0'..=b'9')
        || [&b"true"[..], b"false", b"null"].iter().any(|word| inside.starts_with(word))
}

/// Whether bytes that begin where the file does are text, except for a character that is cut off at their end.
fn is_text_up_to(bytes: &[u8], is_all: bool) -> bool {
    let is_utf8 = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => !is_all && error.error_len().is_none(),
    };
    is_utf8 && !bytes.contains(&0)
}

/// Whether the last bytes of a file are text, except for a character that began before them.
fn is_text_from(bytes: &[u8]) -> bool {
    let cut = bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    is_text_up_to(&bytes[cut..], true)
}

fn is_whole(form: Form, bytes: &[u8]) -> bool {
    is_text_up_to(bytes, true) && (form == Form::Text || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok())
}

/// Whether the record of the central directory's end, its comment included, ends with these bytes.
fn ends_zip(tail: &[u8]) -> bool {
    let Some(last) = tail.len().checked_sub(22) else { return false };
    (0..=last).rev().any(|at| {
        let comment = u16::from_le_bytes([tail[at + 20], tail[at + 21]]);
        tail[at..].starts_with(ZIP_END) && at + 22 + usize::from(comment) == tail.len()
    })
}

/// <https://www.sqlite.org/fileformat.html>, section 1.3.
fn is_sqlite_of(head: &[u8], len: u64) -> bool {
    let Some(header) = head.first_chunk::<100>() else { return false };
    let u32_at = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size if size >= 512 && size.is_power_of_two() => u64::from(size),
        _ => return false,
    };
    // Old programs leave the number of pages as it was; then the length is all there is.
    let has_count = u32_at(28) > 0 && u32_at(24) == u32_at(92);
    if has_count { u64::from(u32_at(28)) * page_bytes == len } else { len.is_multiple_of(page_bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::testing::{Glyphs, Open, noise};

    fn passes(bytes: &[u8], form: Form) -> bool {
        let verdict = validate_bytes(bytes);
        assert_eq!(verdict.form, form, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        verdict.passes
    }

    fn png(body: usize) -> Vec<u8> {
        [PNG, &noise(1, body), PNG_END].concat()
    }

    fn zip(body: usize, comment: usize) -> Vec<u8> {
        let len = (comment as u16).to_le_bytes();
        [ZIP_FILE, &noise(2, body), ZIP_END, &[0; 16], &len, &vec![b'c'; comment]].concat()
    }

    fn sqlite(page_bytes: u32, pages: u32) -> Vec<u8> {
        let mut bytes = vec![0; page_bytes as usize * pages as usize];
        bytes[..16].copy_from_slice(SQLITE);
        bytes[16..18].copy_from_slice(&(if page_bytes == 65536 { 1 } else { page_bytes as u16 }).to_be_bytes());
        bytes[28..32].copy_from_slice(&pages.to_be_bytes());
        bytes
    }

    #[test]
    fn whole_files_pass_and_torn_ones_do_not() {
        let json = format!("{{\"a\": [{}1]}}", "1, ".repeat(100_000));
        let text = "Gr\u{fc}\u{df}".repeat(400_000) + "\u{df}\n";
        let files: [(Form, Vec<u8>); 10] = [
            (Form::Png, png(100)),
            (Form::Png, png(1 << 20)),
            (Form::Zip, zip(100, 0)),
            (Form::Zip, zip(1 << 20, 60_000)),
            (Form::Sqlite, sqlite(512, 3)),
            (Form::Sqlite, sqlite(65536, 3)),
            (Form::Json, b" {\"a\": 1}".to_vec()),
            (Form::Json, b"[[true, null]]".to_vec()),
            (Form::Json, json.into_bytes()),
            (Form::Text, text.into_bytes()),
        ];
        for (form, whole) in files {
            assert!(passes(&whole, form), "{form:?} of {} bytes", whole.len());
            // Cut short, for a text within a character; and the second half never written.
            let cut = whole.len() - if form == Form::Text { 2 } else { 1 };
            assert!(!passes(&whole[..cut], form), "{form:?} cut short");
            let mut torn = whole.clone();
            torn[whole.len() / 2..].fill(0);
            assert!(!validate_bytes(&torn).passes || form == Form::Sqlite, "{form:?} with a blank half");
        }
        assert!(!passes(&sqlite(512, 3)[..1024], Form::Sqlite), "a page is missing");
    }

    #[test]
    fn what_is_known_by_its_first_bytes_is_told_apart() {
        for (bytes, form) in [
            (&b""[..], Form::Opaque),
            (b"\x7fELF\x02\x01\x01\0", Form::Opaque),
            (b"a\0b", Form::Opaque),
            (b"\xff\xfe", Form::Opaque),
            (b"[package]\nname = 1\n", Form::Text),
            (b"[[bin]]\n", Form::Text),
            (b"{{ template }}", Form::Text),
            (b"{", Form::Text),
            (b"[", Form::Text),
            (b"{}", Form::Json),
            (b"[]", Form::Json),
            (b"PK\x05\x06", Form::Zip),
            (b"SQLite format 3\0", Form::Sqlite),
        ] {
            assert_eq!(validate_bytes(bytes).form, form, "{bytes:?}");
        }
    }

    #[test]
    fn of_a_long_file_only_head_and_tail_are_read() {
        for (head, form) in [(&b"text"[..], Form::Text), (ZIP_FILE, Form::Zip), (PNG, Form::Png), (b"\0", Form::Opaque)]
        {
            let mut read = 0;
            let verdict = validate(1 << 40, |buf, offset| {
                read += buf.len();
                buf.fill(b'x');
                if offset == 0 {
                    buf[..head.len()].copy_from_slice(head);
                }
                Ok::<_, ()>(())
            });
            assert_eq!(verdict.map(|verdict| verdict.form), Ok(form));
            assert!(read <= 2 * HEAD + ZIP_TAIL as usize, "{form:?}: {read}");
        }
    }

    #[test]
    fn zeroes_are_blank_however_they_are_stored() {
        let glyphs = Glyphs::default();
        for len in [0, 1, 4096, 4097, 65536, 65537, 3_000_000] {
            let mut open = Open::new();
            open.write(&vec![0; len], 0);
            let content = open.publish().content;
            assert!(is_blank(content, &*open.glyphs).unwrap(), "{len}: {content:?}");
            if len > 0 {
                open.write(b"x", len as u64 - 1);
                let content = open.publish().content;
                assert!(!is_blank(content, &*open.glyphs).unwrap(), "{len}: {content:?}");
            }
        }
        assert!(is_blank(Content::Hole { len_bytes: 1 << 40 }, &glyphs).unwrap());
    }

    /// Bytes of every form, whole or damaged.
    fn drawn() -> impl Strategy<Value = Vec<u8>> {
        let start = prop::sample::select(vec![ZIP_FILE, ZIP_END, SQLITE, PNG, b"{\"", b"[1", b"x"]);
        let end = prop::sample::select(vec![&b""[..], ZIP_END, PNG_END, b"]", b"\"}"]);
        let body = prop::collection::vec(any::<u8>(), 0..200);
        (start, body, end).prop_map(|(start, body, end)| [start, &body, end].concat())
    }

    proptest! {
        #[test]
        fn hostile_bytes_get_a_verdict(bytes in drawn(), fill in any::<u8>(), len in 0..20_000usize) {
            let mut bytes = bytes;
            prop_assert!(validate_bytes(&bytes).form != Form::Opaque || !validate_bytes(&bytes).passes);
            bytes.resize(bytes.len() + len, fill);
            prop_assert!(validate_bytes(&bytes).form != Form::Opaque || !validate_bytes(&bytes).passes);
        }

        #[test]
        fn any_text_passes_whatever_its_length(text in "\\PC{0,40}", times in 1..400usize) {
            let text = format!("x{}", text.repeat(times));
            prop_assert_eq!(validate_bytes(text.as_bytes()), Verdict { form: Form::Text, passes: true });
        }

        #[test]
        fn nested_arrays_of_any_depth_end(depth in 0..200_000usize) {
            let json = "[".repeat(depth) + "1" + &"]".repeat(depth);
            prop_assert!(validate_bytes(json.as_bytes()).passes);
        }
    }

    #[test]
    fn a_reader_that_fails_fails_the_look() {
        assert_eq!(validate(10, |_, _| Err("gone")), Err("gone"));
    }
}
