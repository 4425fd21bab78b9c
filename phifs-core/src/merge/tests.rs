use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Merges sides that were published in this order.
fn merged(driver: Driver, base: &str, sides: &[&str]) -> Option<String> {
    let sides: Vec<_> = (1..).zip(sides).map(|(n, bytes)| side(n, bytes)).collect();
    merge(driver, Some(base.as_bytes()), &sides).map(|bytes| String::from_utf8(bytes).unwrap())
}

fn side(n: u8, bytes: &str) -> Side<'_> {
    Side { hlc: Hlc(u64::from(n)), author: AuthorId([n; 16]), bytes: bytes.as_bytes() }
}

#[test]
fn appended_lines_stand_one_side_after_the_other() {
    let merged = |base: &str, sides: &[&str]| merged(Driver::Append, base, sides);
    assert_eq!(merged("a\n", &["a\nb\n", "a\nc\nd\n"]).unwrap(), "a\nb\nc\nd\n");
    assert_eq!(merged("", &["b\n", "c\n", "d\n"]).unwrap(), "b\nc\nd\n");
    assert_eq!(merged("a\n", &["a\nb", "a\nc\n"]), None, "a line is not whole");
    assert_eq!(merged("a", &["a1\n", "a2\n"]), None, "the base ends in a line that both go on with");
    assert_eq!(merged("a\n", &["a\nb\n", "b\n"]), None, "something was taken away");
    assert_eq!(merged("a\n", &["a\nb\n", "A\nb\n"]), None, "something was changed");
}

#[test]
fn of_appended_lines_none_is_lost_where_the_base_is_not_known() {
    let merged = |texts: &[&str]| {
        let sides: Vec<_> = (1..).zip(texts).map(|(n, bytes)| side(n, bytes)).collect();
        let shuffled: Vec<_> = sides.iter().rev().copied().collect();
        let merged = merge(Driver::Append, None, &sides);
        assert_eq!(merged, merge(Driver::Append, None, &shuffled));
        merged.map(|bytes| String::from_utf8(bytes).unwrap())
    };
    assert_eq!(merged(&["a\nb\nc\n1\n", "a\nb\nc\n2\n", "a\nb\nc\n3\n"]).unwrap(), "a\nb\nc\n1\n2\n3\n");
    assert_eq!(merged(&["a\nb\na2\n", "a\nb\nc\nb2\n", "c\nc2\n"]).unwrap(), "a\nb\na2\nc\nb2\nc2\n");
    // The third one tells what the others have in common.
    assert_eq!(merged(&["a\n1\n", "b\n2\n", "a\nb\n"]).unwrap(), "a\n1\nb\n2\n");
    assert_eq!(merged(&["old\n1\n", "new\n"]), None, "the log may have been rotated");
    assert_eq!(merged(&["a\n1\n", "a\n2"]), None, "a line is not whole");
    assert_eq!(merge(Driver::Text, None, &[side(1, "a\n1\n"), side(2, "a\n2\n")]), None);
}

#[test]
fn lines_that_are_apart_are_changed_by_all() {
    let merged = |base: &str, sides: &[&str]| merged(Driver::Text, base, sides);
    assert_eq!(merged("1\n2\n3\n", &["one\n2\n3\n", "1\n2\nthree\n"]).unwrap(), "one\n2\nthree\n");
    assert_eq!(merged("1\n2\n3\n4\n5\n", &["1\n3\n4\n5\n", "1\n2\n3\n4\n5\n6\n"]).unwrap(), "1\n3\n4\n5\n6\n");
    assert_eq!(merged("1\n2\n3", &["0\n1\n2\n3", "1\n2\nthree"]).unwrap(), "0\n1\n2\nthree");
    let three = ["1\nx\n2\n3\n4\n", "1\n2\n3\ny\n4\n", "1\n2\n3\n4\nz\n"];
    assert_eq!(merged("1\n2\n3\n4\n", &three).unwrap(), "1\nx\n2\n3\ny\n4\nz\n");
    assert_eq!(merged("1\n2\n3\n", &["one\n2\n3\n", "one\n2\nthree\n"]).unwrap(), "one\n2\nthree\n", "the same twice");
}

#[test]
fn lines_that_meet_are_a_contradiction() {
    let merged = |base: &str, sides: &[&str]| merged(Driver::Text, base, sides);
    assert_eq!(merged("1\n2\n", &["one\n2\n", "uno\n2\n"]), None);
    assert_eq!(merged("1\n2\n", &["one\n2\n", "1\ntwo\n"]), None, "side by side");
    assert_eq!(merged("1\n", &["1\na\n", "1\nb\n"]), None, "which comes first?");
    assert_eq!(merged("1\n2\n3\n", &["1\n3\n", "1\ntwo\n3\n"]), None);
    assert_eq!(merged("1\n2\n3\n", &["", "1\n2\nthree\n"]), None, "nothing is left of it");
}

#[test]
fn what_is_no_text_or_too_long_is_not_merged() {
    let binary = |bytes: &'static [u8]| Side { hlc: Hlc(1), author: AuthorId([1; 16]), bytes };
    let other = side(2, "1\n2\nthree\n");
    assert_eq!(merge(Driver::Text, Some(b"1\n2\n3\n"), &[binary(b"\xff\n2\n3\n"), other]), None);
    assert_eq!(merge(Driver::Text, Some(b"1\n2\n3\n"), &[binary(b"\0\n2\n3\n"), other]), None);
    for driver in Driver::ALL {
        let long = "x\n".repeat(driver.len_max() / 2);
        let sides = [long.clone() + "y\n", "z\n".to_owned() + &long];
        assert_eq!(merged(driver, &long, &[&sides[0], &sides[1]]), None);
    }
}

#[test]
fn a_merge_of_lines_that_is_no_json_any_more_is_none() {
    let base = "{\n\"a\": 1,\n\"b\": 2,\n\"c\": 3,\n\"d\": 4\n}\n";
    // Each is JSON; both together would lack a comma.
    let one = "{\n\"a\": 1,\n\"b\": 2,\n\"c\": 3,\n\"d\": 4,\n\"e\": 5}\n";
    let other = "{\n\"a\": 7,\n\"b\": 2,\n\"c\": 3,\n\"d\": 4\n}\n";
    assert!(merged(Driver::Text, base, &[one, other]).is_some());
    let dropped = "{\n\"b\": 2,\n\"c\": 3,\n\"d\": 4}\n";
    let added = "{\n\"a\": 1,\n\"b\": 2,\n\"c\": 3,\n\"d\": 4\n,\"a2\": [\n1]}\n";
    let merged = merged(Driver::Text, base, &[dropped, added]);
    assert!(merged.is_none_or(|text| serde_json::from_str::<serde_json::Value>(&text).is_ok()));
}

#[test]
fn keys_of_objects_are_merged_at_any_depth() {
    let merged = |base: &str, sides: &[&str]| merged(Driver::Json, base, sides);
    assert_eq!(
        merged(r#"{"a":1,"b":2}"#, &[r#"{"a":1.50,"b":2}"#, r#"{"a":1,"b":2,"c":[3]}"#]).unwrap(),
        r#"{"a":1.50,"b":2,"c":[3]}"#
    );
    let base = "{\n  \"a\": {\n    \"x\": 1,\n    \"y\": 2\n  },\n  \"z\": 12345678901234567890123\n}\n";
    let (one, other) = (base.replace(": 1,", ": 10,"), base.replace("\"y\": 2", "\"y\": 20"));
    let both = one.replace("\"y\": 2", "\"y\": 20");
    assert_eq!(merged(base, &[&one, &other]).unwrap(), both);
    assert_eq!(merged(r#"{"a":1,"b":2}"#, &[r#"{"b":2}"#, r#"{"a":1,"b":3}"#]).unwrap(), r#"{"b":3}"#);
    assert_eq!(merged("{}", &[r#"{"k":{"a":1}}"#, r#"{"k":{"b":2}}"#]).unwrap(), r#"{"k":{"a":1,"b":2}}"#);
    assert_eq!(merged(r#"{"\n":1}"#, &[r#"{"\n":1,"b":1}"#, r#"{"\n":2}"#]).unwrap(), r#"{"\n":2,"b":1}"#);
}

#[test]
fn values_that_two_sides_changed_are_a_contradiction() {
    let merged = |base: &str, sides: &[&str]| merged(Driver::Json, base, sides);
    assert_eq!(merged(r#"{"a":1}"#, &[r#"{"a":2}"#, r#"{"a":3}"#]), None);
    assert_eq!(merged(r#"{"a":1}"#, &["{}", r#"{"a":3}"#]), None);
    assert_eq!(merged(r#"{"a":[1]}"#, &[r#"{"a":[1,2]}"#, r#"{"a":[0,1]}"#]), None, "arrays are a whole");
    assert_eq!(merged("[1]", &["[1,2]", "[0,1]"]), None);
    assert_eq!(merged(r#"{"a":1}"#, &[r#"{"a":1,"b":1}"#, r#"{"a":1,"c":1,"c":2}"#]), None, "a key is there twice");
    assert_eq!(merged(r#"{"a":1}"#, &[r#"{"a":1,"b":1}"#, r#"{"a":1,"c":"#]), None, "torn");
    let deep = |value: &str| r#"{"a":"#.repeat(5000) + value + &"}".repeat(5000);
    assert_eq!(merged(&deep("{}"), &[&deep(r#"{"b":1}"#), &deep(r#"{"c":1}"#)]), None);
}

/// The output of version 1 of each driver, for ever: a node with another one would see other files.
#[test]
fn the_drivers_make_what_their_version_says() {
    let words = |seed: u64| {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = [0; 900];
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes.map(|byte| byte % 7)
    };
    let base: Vec<String> = words(1).iter().map(|word| format!("{}\n", "ab".repeat(usize::from(*word)))).collect();
    let mut outcomes = blake3::Hasher::new();
    let mut clean = 0;
    for seed in 2..200 {
        let changed = |seed: u64| -> String {
            let words = words(seed);
            let mut lines = base.clone();
            for at in 0..2 {
                let line = usize::from(words[at]) * 120 + usize::from(words[at + 2]) * 7 + at;
                lines[line] = format!("{}{seed}\n", lines[line].trim_end());
                lines.insert(line, "ab\n".to_owned());
            }
            lines.concat()
        };
        let outcome = merged(Driver::Text, &base.concat(), &[&changed(seed), &changed(seed + 1000)]);
        clean += usize::from(outcome.is_some());
        outcomes.update(outcome.unwrap_or_default().as_bytes());
    }
    assert!(clean > 20, "{clean}");
    assert_eq!(outcomes.finalize().to_hex()[..16], *"020fe1aeb2fc4fcc");
}

#[test]
fn names_and_attributes_choose_the_driver() {
    for (name, attribute, driver) in [
        ("a.log", None, Some(Driver::Append)),
        ("a.jsonl", None, Some(Driver::Append)),
        ("a.txt", None, None),
        ("a.txt", Some("text"), Some(Driver::Text)),
        ("a.txt", Some("json"), Some(Driver::Json)),
        ("a.txt", Some("append"), Some(Driver::Append)),
        ("a.log", Some("text"), Some(Driver::Append)),
        ("a.log", Some("none"), None),
        ("a.log", Some("of the future"), None),
    ] {
        assert_eq!(Driver::of(name.as_bytes(), attribute.map(str::as_bytes)), driver, "{name} {attribute:?}");
    }
}

#[test]
fn a_driver_of_another_version_is_not_run() {
    let all: Pinned = "append/1 text/1 json/1".parse().unwrap();
    assert_eq!(all, Pinned::default());
    assert_eq!(all.to_string(), "append/1 text/1 json/1");
    let some: Pinned = "text/2 toml/1 append/1".parse().unwrap();
    assert_eq!(Driver::ALL.map(|driver| some.runs(driver)), [true, false, false]);
    assert_eq!(some.unknown().collect::<Vec<_>>(), ["text/2", "toml/1"]);
    assert_eq!("none".parse::<Pinned>().unwrap().to_string(), "none");
    for bad in ["", "text", "text/0", "text/x", "text/1 text/2", "/1", "Text/1"] {
        assert!(bad.parse::<Pinned>().is_err(), "{bad:?}");
    }
}

/// Few lines of few words, so that they meet; some are like JSON.
fn text() -> impl Strategy<Value = String> {
    let line = select(vec!["a\n", "b\n", "c\n", "\n", "{\n", "}\n", "\"k\": 1,\n", "no end"]);
    vec(line, 0..9).prop_map(|lines| lines.concat())
}

fn json() -> impl Strategy<Value = String> {
    let leaf = select(vec!["1", "[1]", "[1, 2]", "null", "{}"]).prop_map(str::to_owned);
    leaf.prop_recursive(3, 20, 4, |inner| {
        let key = select(vec!["a", "b", "c", "d"]);
        prop::collection::btree_map(key, inner, 0..4).prop_map(|entries| {
            let entries: Vec<_> = entries.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
            format!("{{{}}}", entries.join(", "))
        })
    })
}

fn contents() -> impl Strategy<Value = Vec<String>> {
    let appended = (text(), vec(text(), 1..4)).prop_map(|(base, added)| {
        let sides = added.iter().map(|added| base.clone() + added);
        std::iter::once(base.clone()).chain(sides).collect()
    });
    prop_oneof![vec(text(), 2..5), vec(json(), 2..5), appended]
}

proptest! {
    #[test]
    fn the_order_of_the_sides_plays_no_part(contents in contents(), order in any::<[u16; 4]>()) {
        let (base, sides) = contents.split_first().unwrap();
        let sides: Vec<Side<'_>> = (1..).zip(sides).map(|(n, bytes)| side(n, bytes)).collect();
        let mut shuffled: Vec<(u16, Side<'_>)> = order.into_iter().zip(sides.clone()).collect();
        shuffled.sort_unstable();
        let shuffled: Vec<_> = shuffled.into_iter().map(|(_, side)| side).collect();
        for driver in Driver::ALL {
            prop_assert_eq!(merge(driver, Some(base.as_bytes()), &sides), merge(driver, Some(base.as_bytes()), &shuffled));
        }
    }

    #[test]
    fn one_that_changed_something_wins_over_those_that_did_not(contents in contents()) {
        let (base, side) = (&contents[0], &contents[1]);
        for driver in Driver::ALL {
            for sides in [&[side.as_str(), side][..], &[base, side], &[side, base, side], &[side]] {
                let merged = merged(driver, base, sides);
                prop_assert_eq!(merged.as_ref(), Some(side));
            }
        }
    }

    #[test]
    fn every_line_of_a_merge_is_a_line_of_something(contents in contents()) {
        let (base, sides) = contents.split_first().unwrap();
        let sides: Vec<&str> = sides.iter().map(String::as_str).collect();
        for driver in [Driver::Append, Driver::Text] {
            let Some(merged) = merged(driver, base, &sides) else { continue };
            for line in merged.split_inclusive('\n') {
                prop_assert!(contents.iter().any(|text| text.split_inclusive('\n').any(|other| other == line)));
            }
        }
    }

    #[test]
    fn a_merge_of_objects_has_every_change_of_every_side(contents in vec(json(), 3)) {
        use serde_json::Value;
        let parse = |text: &String| serde_json::from_str::<Value>(text).unwrap();
        let Some(merged) = merged(Driver::Json, &contents[0], &[&contents[1], &contents[2]]) else { return Ok(()) };
        let (base, merged) = (parse(&contents[0]), parse(&merged));
        for side in contents[1..].iter().map(parse).filter(Value::is_object) {
            for key in ["a", "b", "c", "d"].iter().filter(|key| side.get(key) != base.get(key)) {
                let is_leaf = side.get(key).is_none_or(|value| !value.is_object());
                prop_assert!(!is_leaf || merged.get(key) == side.get(key), "{}: {:?} {:?}", key, side, merged);
            }
        }
    }

    #[test]
    fn any_bytes_are_merged_or_not(base: Vec<u8>, a: Vec<u8>, b: Vec<u8>) {
        let author = AuthorId([1; 16]);
        let sides = [Side { hlc: Hlc(1), author, bytes: &a }, Side { hlc: Hlc(2), author, bytes: &b }];
        for driver in Driver::ALL {
            let _ = merge(driver, Some(&base), &sides);
        }
    }
}
