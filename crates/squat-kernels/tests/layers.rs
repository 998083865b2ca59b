//! Modules form layers: no module imports one that imports it, directly or by way of others.

// A WebAssembly module cannot read the sources.
#![cfg(not(target_family = "wasm"))]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Imports = BTreeMap<String, BTreeSet<String>>;

/// The Rust files in and below a folder.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file: no comments, no tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// Names that follow `prefix` in the code, also within the braces of `prefix{a, b::c}`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        let paths = match rest.strip_prefix('{') {
            None => vec![rest],
            Some(inner) => {
                let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
                for (i, c) in inner.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => {
                            paths.push(&inner[start..i]);
                            break;
                        }
                        '}' => depth -= 1,
                        ',' if depth == 0 => {
                            paths.push(&inner[start..i]);
                            start = i + 1;
                        }
                        _ => {}
                    }
                }
                paths
            }
        };
        for path in paths {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            names.insert(path.trim_start().chars().take_while(|&c| is_name(c)).collect());
        }
    }
    names
}

/// A way from a module back to itself.
fn cycle(imports: &Imports) -> Option<Vec<String>> {
    fn visit(
        module: &str,
        imports: &Imports,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|passed| passed == module) {
            return Some(way[start..].iter().cloned().chain([module.to_owned()]).collect());
        }
        if done.contains(module) {
            return None;
        }
        way.push(module.to_owned());
        let found = imports[module].iter().find_map(|next| visit(next, imports, way, done));
        way.pop();
        done.insert(module.to_owned());
        found
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| visit(module, imports, &mut Vec::new(), &mut done))
}

/// Module of a file below `folder`: the first part of its path.
fn module_of(path: &Path, folder: &Path) -> String {
    let first = path.strip_prefix(folder).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Imports between the modules of a folder: what follows `prefix` in their files.
fn imports(folder: &Path, prefix: &str) -> Imports {
    let mut paths = Vec::new();
    files(folder, &mut paths);
    paths.retain(|path| !["lib", "mod", "tests"].contains(&module_of(path, folder).as_str()));
    paths.retain(|path| !path.ends_with("tests.rs") && !path.ends_with("tile_emulation.rs"));
    let mut imports = Imports::new();
    for path in &paths {
        let module = module_of(path, folder);
        let names = names_after(&code(path), prefix);
        imports.entry(module).or_default().extend(names);
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (module, names) in &mut imports {
        names.retain(|name| name != module && modules.contains(name));
    }
    imports
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found = imports(&source, "crate::");
    assert!(found.len() > 15 && found["dispatch"].contains("arch"), "{found:?}");
    assert!(found["block"].is_empty() && found["simd"].contains("block"), "{found:?}");
    assert_eq!(cycle(&found), None);
    for folder in ["arch", "attention", "float", "product"] {
        let found = imports(&source.join(folder), "super::");
        assert!(found.values().any(|names| !names.is_empty()), "{found:?}");
        assert_eq!(cycle(&found), None, "in {folder}");
    }
}

#[test]
fn a_circle_is_found() {
    let names = names_after("use crate::{a::{b, c}, d};\nlet x = crate::e::f();", "crate::");
    assert_eq!(names, ["a", "d", "e"].map(str::to_owned).into());
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let with = |of_c: &[&str]| -> Imports {
        [("a", set(&["b", "c"])), ("b", set(&["c"])), ("c", set(of_c))]
            .map(|(module, names)| (module.to_owned(), names))
            .into()
    };
    assert_eq!(cycle(&with(&[])), None);
    let found = cycle(&with(&["a"])).unwrap();
    assert_eq!(found, ["a", "b", "c", "a"].map(str::to_owned));
}
