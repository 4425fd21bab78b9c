//! JSON by key: what the sides changed in different keys of objects, at any depth. Arrays and all other values are
//! changed as a whole or not.
//!
//! Values that no two sides changed keep the very text they have: a number is never read and written again. Keys stay
//! in the order of the base, and new ones follow in the order of the sides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Objects within objects are merged this deep.
const DEPTH_MAX: usize = 64;

/// The keys of an object in their order, each once, and the text of their values.
struct Object<'a> {
    order: Vec<String>,
    values: BTreeMap<String, &'a str>,
}

enum Merged<'a> {
    Text(&'a str),
    Object(Vec<(String, Self)>),
}

pub fn merge(base: &str, sides: &[&str]) -> Option<String> {
    let merged = merge_objects(base, sides, DEPTH_MAX)?;
    let layout = std::iter::once(&base).chain(sides).find_map(|text| Layout::of(text)).unwrap_or_default();
    let mut out = String::with_capacity(base.len());
    layout.write(&mut out, &Merged::Object(merged), 0);
    out.push_str(&base[base.trim_end().len()..]);
    Some(out)
}

/// `None`: they contradict each other, or are no objects.
fn merge_objects<'a>(base: &'a str, sides: &[&'a str], depth_max: usize) -> Option<Vec<(String, Merged<'a>)>> {
    let depth_max = depth_max.checked_sub(1)?;
    let base = Object::parse(base)?;
    let sides = sides.iter().map(|side| Object::parse(side)).collect::<Option<Vec<_>>>()?;
    let mut known: BTreeSet<&str> = base.order.iter().map(String::as_str).collect();
    let mut keys: Vec<&String> = base.order.iter().collect();
    for side in &sides {
        keys.extend(side.order.iter().filter(|key| known.insert(key.as_str())));
    }
    let mut merged = Vec::with_capacity(keys.len());
    for key in keys {
        let before = base.values.get(key).copied();
        let mut changed: Vec<Option<&str>> = Vec::new();
        for side in &sides {
            let now = side.values.get(key).copied();
            if now != before && !changed.contains(&now) {
                changed.push(now);
            }
        }
        let value = match changed[..] {
            [] => before.map(Merged::Text),
            [only] => only.map(Merged::Text),
            // All are objects: what is in them may go together.
            _ => {
                let changed = changed.into_iter().collect::<Option<Vec<_>>>()?;
                Some(Merged::Object(merge_objects(before.unwrap_or("{}"), &changed, depth_max)?))
            }
        };
        merged.extend(value.map(|value| (key.clone(), value)));
    }
    Some(merged)
}

impl<'a> Object<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object { order: Vec::new(), values: BTreeMap::new() };
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    object.order.push(key.clone());
                    // Which of the two counts is not laid down anywhere.
                    if object.values.insert(key, value.get()).is_some() {
                        return Err(A::Error::custom("a key is there twice"));
                    }
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// How objects are laid out: one key on a line, or all on one.
#[derive(Default)]
struct Layout<'a> {
    indent: Option<&'a str>,
}

impl<'a> Layout<'a> {
    /// As the first key of a text is; nothing if there is none.
    fn of(text: &'a str) -> Option<Self> {
        let inside = text.trim_start().strip_prefix('{')?;
        let key = inside.trim_start();
        if key.starts_with('}') {
            return None;
        }
        let space = &inside[..inside.len() - key.len()];
        Some(Self { indent: space.rfind('\n').map(|at| &space[at + 1..]) })
    }

    fn write(&self, out: &mut String, value: &Merged<'_>, depth: usize) {
        let entries = match value {
            Merged::Text(text) => return out.push_str(text),
            Merged::Object(entries) => entries,
        };
        out.push('{');
        for (n, (key, value)) in entries.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            self.start_line(out, depth + 1);
            let key = serde_json::Value::from(key.as_str());
            let colon = if self.indent.is_some() { ": " } else { ":" };
            write!(out, "{key}{colon}").expect("a string takes everything");
            self.write(out, value, depth + 1);
        }
        if !entries.is_empty() {
            self.start_line(out, depth);
        }
        out.push('}');
    }

    fn start_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }
}
