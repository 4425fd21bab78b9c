//! Rules on crates: who may depend on whom, which licences, and that each direct dependency is explained.
//!
//! All of it from `cargo metadata`, offline. Known vulnerabilities are not looked up here: that needs the advisory
//! database, which is no package of a registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tidy;

/// Which crates of this workspace each may use; nobody may use the tests and tools.
const MAY_USE: [(&str, &[&str]); 6] = [
    ("phifs-core", &[]),
    ("phifs-fuse", &["phifs-core"]),
    ("phifs-node", &["phifs-core", "phifs-fuse"]),
    ("phifs-tests", &["phifs-core"]),
    ("phifs-bench", &["phifs-core", "phifs-node"]),
    ("phifs-xtask", &[]),
];
/// What core must not know, directly or through others.
const BANNED_IN_CORE: [&str; 7] = ["tokio", "fuser", "quinn", "sled", "rustix", "nix", "mio"];
/// Terms under which this work may be given on.
const LICENCES: [&str; 14] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "MIT",
    "MIT-0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "BSL-1.0",
];
const EXPLAINED_IN: &str = "docs/src/reference/dependencies.md";

pub fn metadata(root: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(["metadata", "--format-version=1", "--locked"]).args(arguments).current_dir(root);
    let output = command.output().context("cannot start cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Every broken rule, in words.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let metadata = metadata(root, &[])?;
    let page = fs::read_to_string(root.join(EXPLAINED_IN)).unwrap_or_default();
    let mut problems = check(&metadata, &page);
    problems.extend(unused(&metadata)?);
    Ok(problems)
}

/// Dependencies that no source file of their package names. As crude as the rules on text: a comment counts as a use.
fn unused(metadata: &Value) -> Result<Vec<String>> {
    let own: BTreeSet<&str> = list(metadata, "workspace_members").filter_map(Value::as_str).collect();
    let mut problems = Vec::new();
    for package in list(metadata, "packages").filter(|package| own.contains(text(package, "id"))) {
        let folder = Path::new(text(package, "manifest_path")).parent().context("a manifest without a folder")?;
        let mut sources = String::new();
        for path in tidy::sources(folder)? {
            sources += &fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        }
        for dependency in list(package, "dependencies") {
            let name = text(dependency, "name");
            let word = name.replace('-', "_");
            if !sources.contains(&format!("{word}::")) && !sources.contains(&format!("use {word}")) {
                problems.push(format!("{} names {name} and does not use it", text(package, "name")));
            }
        }
    }
    Ok(problems)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn check(metadata: &Value, page: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let own: BTreeSet<&str> = list(metadata, "workspace_members").filter_map(Value::as_str).collect();
    let names: BTreeMap<&str, &str> = list(metadata, "packages").map(|p| (text(p, "id"), text(p, "name"))).collect();
    let mut direct = BTreeSet::new();
    for package in list(metadata, "packages") {
        let name = text(package, "name");
        if !own.contains(text(package, "id")) {
            let licence = text(package, "license");
            if !is_allowed(licence) {
                problems.push(format!("{name} has the licence {licence:?}, which is not on the list"));
            }
            continue;
        }
        let Some((_, may_use)) = MAY_USE.iter().find(|(of, _)| *of == name) else {
            problems.push(format!("{name} is not in the table of who may use whom"));
            continue;
        };
        for dependency in list(package, "dependencies") {
            let used = text(dependency, "name");
            if used.starts_with("phifs-") {
                if !may_use.contains(&used) {
                    problems.push(format!("{name} depends on {used}"));
                }
            } else {
                direct.insert(used);
            }
        }
    }
    let unexplained = direct.iter().filter(|name| !page.contains(&format!("`{name}`")));
    problems.extend(unexplained.map(|name| format!("{name} is a dependency without a line in {EXPLAINED_IN}")));
    for name in reached_by(metadata, &names, "phifs-core") {
        if BANNED_IN_CORE.contains(&name) {
            problems.push(format!("phifs-core depends on {name}, maybe through others"));
        }
    }
    problems
}

/// The names of all crates compiled into one, its tests and build scripts left out.
fn reached_by<'a>(metadata: &'a Value, names: &BTreeMap<&'a str, &'a str>, start: &str) -> BTreeSet<&'a str> {
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes").map(|n| (text(n, "id"), n)).collect();
    let mut open: Vec<&str> = names.iter().filter(|(_, name)| **name == start).map(|(id, _)| *id).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        let Some(node) = nodes.get(id) else { continue };
        for dependency in list(node, "deps") {
            let normal = list(dependency, "dep_kinds").any(|kind| kind["kind"].is_null());
            let id = text(dependency, "pkg");
            if normal && seen.insert(id) {
                open.push(id);
            }
        }
    }
    seen.into_iter().filter_map(|id| names.get(id).copied()).collect()
}

/// Whether one of the ways to take a licence expression has allowed terms only. `/` is the old way to write OR.
fn is_allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" OR ").any(|way| way.split(" AND ").all(|term| LICENCES.contains(&term.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_as_choices() {
        assert!(is_allowed("MIT OR Apache-2.0") && is_allowed("MIT/Apache-2.0") && is_allowed("GPL-3.0 OR MIT"));
        assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!is_allowed("GPL-3.0") && !is_allowed("") && !is_allowed("MIT AND GPL-3.0"));
    }

    #[test]
    fn directions_bans_and_explanations_are_checked() {
        let metadata = serde_json::json!({
            "workspace_members": ["core", "fuse"],
            "packages": [
                {"id": "core", "name": "phifs-core", "dependencies": [{"name": "phifs-fuse"}, {"name": "helper"}]},
                {"id": "fuse", "name": "phifs-fuse", "dependencies": [{"name": "phifs-core"}, {"name": "known"}]},
                {"id": "helper", "name": "helper", "license": "MIT", "dependencies": []},
                {"id": "tokio", "name": "tokio", "license": "GPL-2.0", "dependencies": []},
            ],
            "resolve": {"nodes": [
                {"id": "core", "deps": [{"pkg": "helper", "dep_kinds": [{"kind": null}]}]},
                {"id": "helper", "deps": [{"pkg": "tokio", "dep_kinds": [{"kind": null}]}]},
                {"id": "fuse", "deps": []},
            ]},
        });
        let found = check(&metadata, "| `known` | for a reason |");
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().any(|line| line == "phifs-core depends on phifs-fuse"));
        assert!(found.iter().any(|line| line.starts_with("helper is a dependency without a line")));
        assert!(found.iter().any(|line| line.starts_with("phifs-core depends on tokio")));
        assert!(found.iter().any(|line| line.starts_with("tokio has the licence")));
    }
}
