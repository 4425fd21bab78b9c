//! Files that only grow, by whole lines.

/// The base, then what each side added, in the order of the sides. Lines are never split: the base and all additions
/// end with one.
pub fn merge(base: &[u8], sides: &[&[u8]]) -> Option<Vec<u8>> {
    let is_whole = |bytes: &[u8]| bytes.is_empty() || bytes.ends_with(b"\n");
    let added: Option<Vec<&[u8]>> =
        sides.iter().map(|side| side.strip_prefix(base).filter(|it| is_whole(it))).collect();
    let added = added.filter(|_| is_whole(base))?;
    Some([base, &added.concat()].concat())
}
