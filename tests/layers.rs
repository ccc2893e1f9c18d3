//! The map of the code (src/lib.rs, docs/design.md, CONTRIBUTING.md) against the imports: no module uses one that is not
//! below it in the map, and inside a module no two files use each other, directly or through others.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends where something is not as it should be")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LIB: &str = include_str!("../src/lib.rs");
const DESIGN: &str = include_str!("../docs/design.md");
const CONTRIBUTING: &str = include_str!("../CONTRIBUTING.md");
/// Modules outside the map: test infrastructure, which uses everything.
const OUTSIDE: [&str; 1] = ["testing"];
/// The binary, which is no part of the library.
const BINARY: [&str; 2] = ["main", "cli"];

/// The modules of each row of a map: the words before the first run of two spaces.
fn rows<'t>(lines: impl Iterator<Item = &'t str>) -> Vec<Vec<String>> {
    let modules = |line: &str| {
        let names = line.trim().split("  ").next().unwrap().to_owned();
        names.split([',', '|']).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    };
    lines.map(modules).collect()
}

fn map() -> Vec<Vec<String>> {
    let (_, text) = LIB.split_once("```text\n").unwrap();
    let (text, _) = text.split_once("//! ```").unwrap();
    let rows = rows(text.lines().map(|line| line.strip_prefix("//!").unwrap()));
    rows.into_iter().filter(|row| !OUTSIDE.contains(&row[0].as_str())).collect()
}

#[test]
fn the_map_is_the_same_in_all_places() {
    let (_, text) = DESIGN.split_once("\n## 4. Layers\n").unwrap();
    let text = text.split("\n## ").next().unwrap();
    assert_eq!(rows(text.lines().filter(|line| line.starts_with("    "))), map(), "docs/design.md, section 4");
    let (_, text) = CONTRIBUTING.split_once("Dependencies point down only:").unwrap();
    let (text, _) = text.split_once(".\n").unwrap();
    let chain: Vec<Vec<String>> = text
        .split("->")
        .map(|step| {
            step.split(['`', ',', '|']).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
        })
        .collect();
    assert_eq!(chain, map(), "CONTRIBUTING.md");
    let declared: BTreeSet<_> =
        LIB.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mapped: Vec<_> = map().into_iter().flatten().filter(|name| !BINARY.contains(&name.as_str())).collect();
    let mapped: BTreeSet<_> = mapped.iter().map(String::as_str).chain(OUTSIDE).collect();
    assert_eq!(mapped, declared, "src/lib.rs");
}

/// The `.rs` files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
    found
}

/// The text of a file without its tests and its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// The modules that are declared in a file for tests only.
fn for_tests(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut only_tests = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(any(test") {
            only_tests = true;
        } else if !line.starts_with("#[") {
            let name = line.split("mod ").nth(1).and_then(|rest| rest.strip_suffix(';'));
            found.extend(name.filter(|_| only_tests).map(str::to_owned));
            only_tests = false;
        }
    }
    found
}

/// The words that follow `prefix` in a text, also within braces: `prefix{a::X, b}` has `a` and `b`.
fn after(text: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split(';').next().unwrap();
                found.extend(list.split([',', '{', '}']).map(|item| word(item.trim())));
            }
            None => drop(found.insert(word(rest))),
        }
    }
    found.remove("");
    found
}

/// The files of a module in src, without those that are for tests only.
fn module(name: &str) -> Vec<PathBuf> {
    let file = PathBuf::from(format!("src/{name}.rs"));
    if file.exists() {
        return vec![file];
    }
    let directory = PathBuf::from(format!("src/{name}"));
    let mut found = files(&directory);
    let declaring: Vec<_> = found.clone();
    for parent in declaring {
        let beside =
            if parent.ends_with("mod.rs") { parent.parent().unwrap().to_owned() } else { parent.with_extension("") };
        for test in for_tests(&fs::read_to_string(&parent).unwrap()) {
            found.retain(|file| *file != beside.join(format!("{test}.rs")) && !file.starts_with(beside.join(&test)));
        }
    }
    found
}

#[test]
fn a_module_uses_only_modules_below_it() {
    let map = map();
    let rows: Vec<_> = map.iter().filter(|row| !BINARY.contains(&row[0].as_str())).collect();
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let below: BTreeSet<&String> = rows.iter().skip(index + 1).flat_map(|row| row.iter()).collect();
        for name in *row {
            for file in module(name) {
                for used in after(&code(&file), "crate::") {
                    let is_module = rows.iter().any(|row| row.contains(&used));
                    if is_module && used != *name && !below.contains(&used) {
                        wrong.push(format!("{} uses {used}, which is not below {name}", file.display()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What each part of a module uses of the module's other parts.
fn uses(directory: &Path, allowed: &[PathBuf]) -> BTreeMap<String, BTreeSet<String>> {
    let part_of = |file: &Path| {
        let part = file.strip_prefix(directory).ok()?.components().next()?.as_os_str().to_str()?;
        let part = part.strip_suffix(".rs").unwrap_or(part);
        (part != "mod").then(|| part.to_owned())
    };
    let parts: BTreeSet<_> = allowed.iter().filter_map(|file| part_of(file)).collect();
    let path = format!("crate::{}::", directory.strip_prefix("src").unwrap().to_str().unwrap().replace('/', "::"));
    let mut uses = BTreeMap::<String, BTreeSet<String>>::new();
    for file in allowed {
        let Some(part) = part_of(file) else { continue };
        let text = code(file);
        let depth = file.strip_prefix(directory).unwrap().components().count();
        // `a.rs` and `a/mod.rs` are one below the directory, `a/b.rs` two.
        let up = if file.ends_with("mod.rs") { depth - 1 } else { depth };
        let mut used = after(&text, &"super::".repeat(up));
        used.extend(after(&text, &path));
        used.retain(|used| *used != part && parts.contains(used));
        uses.entry(part).or_default().extend(used);
    }
    uses
}

/// Whether a part uses itself through others.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>, part: &String) -> Option<Vec<String>> {
    let mut ways = vec![vec![part.clone()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in uses.get(way.last().unwrap()).into_iter().flatten() {
            if next == part {
                return Some([&way[..], std::slice::from_ref(next)].concat());
            }
            if seen.insert(next.clone()) {
                ways.push([&way[..], std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

#[test]
fn inside_a_module_nothing_uses_itself_through_others() {
    let mut circles = Vec::new();
    for name in map().into_iter().flatten().filter(|name| name != "main") {
        let files = module(&name);
        let directories: BTreeSet<_> =
            files.iter().filter_map(|file| file.parent()).filter(|parent| *parent != Path::new("src")).collect();
        for directory in directories {
            let below: Vec<_> = files.iter().filter(|file| file.starts_with(directory)).cloned().collect();
            let uses = uses(directory, &below);
            circles.extend(
                uses.keys()
                    .filter_map(|part| circle(&uses, part))
                    .map(|way| format!("{}: {}", directory.display(), way.join(" -> "))),
            );
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_and_an_import_are_found() {
    let edges = |of: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
        of.iter()
            .map(|(part, used)| ((*part).to_owned(), used.iter().map(|used| (*used).to_owned()).collect()))
            .collect()
    };
    let round = edges(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
    assert_eq!(circle(&round, &"a".to_owned()).unwrap(), ["a", "b", "c", "a"]);
    assert_eq!(circle(&edges(&[("a", &["b", "c"]), ("b", &["c"])]), &"a".to_owned()), None);
    let text = "use super::x::Y;\nuse super::{a, b::{C, D}};\nsuper::super::other::f(); self::super::no";
    let found: BTreeSet<_> = ["x", "a", "b", "C", "D", "super"].map(str::to_owned).into();
    assert_eq!(after(text, "super::"), found);
    let declared =
        "mod a;\n#[cfg(test)]\nmod tests_of_a;\n#[cfg(test)]\n#[path = \"x.rs\"]\npub(crate) mod double;\npub mod b;";
    assert_eq!(for_tests(declared), ["tests_of_a", "double"].map(str::to_owned).into());
}
