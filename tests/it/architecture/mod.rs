//! The order of modules, held by the paths that stand in `src/`. Items under `#[cfg(test)]` are left out: a test stands in the file
//! that it checks, and may need a layer above it to do so.

mod imports;
mod tokens;

use std::collections::BTreeSet;
use std::path::Path;

use imports::{Crate, circles};

/// The modules under `src/` from the ground up: each uses only those before it.
const ORDER: [&str; 25] = [
    "random", "panics", "setting", "gpu", "error", "files", "hub", "quant", "ops", "tune", "model", "lora", "data",
    "network", "infer", "serve", "train", "memory", "export", "bench", "doctor", "demo", "cli", "web", "crate",
];

fn read_sources(dir: &Path, prefix: &str, sources: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(dir).expect("a folder of sources").map(|entry| entry.expect("an entry")).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            read_sources(&entry.path(), &format!("{name}/"), sources);
        } else if name.ends_with(".rs") {
            sources.push((name, std::fs::read_to_string(entry.path()).expect("a source")));
        }
    }
}

fn sources() -> Crate {
    let mut sources = Vec::new();
    read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    // The program's root only calls `cli`; both roots would stand at one place of the tree.
    sources.retain(|(name, _)| name != "main.rs");
    assert!(sources.len() > 100, "{} sources", sources.len());
    Crate::new(sources)
}

/// A description of each circle of imports between files.
fn circles_of(all: &Crate) -> Vec<String> {
    let uses = all.uses();
    let name = |i: &usize| all.files[*i].name.as_str();
    let describe = |group: Vec<usize>| {
        let of_group = |i: &usize| -> Vec<&str> { uses[*i].iter().filter(|j| group.contains(j)).map(name).collect() };
        let lines: Vec<String> = group.iter().map(|i| format!("{} uses {}", name(i), of_group(i).join(", "))).collect();
        lines.join("\n")
    };
    circles(&uses).into_iter().map(describe).collect()
}

/// Each use of a file by one whose module stands lower.
fn uses_above(all: &Crate) -> Vec<String> {
    let level = |file: usize| {
        let top = all.files[file].top();
        ORDER
            .iter()
            .position(|name| *name == top)
            .unwrap_or_else(|| panic!("{top} has no place in the order of modules"))
    };
    let mut found = Vec::new();
    for (i, used) in all.uses().iter().enumerate() {
        let above = used.iter().filter(|j| level(**j) > level(i));
        found.extend(above.map(|j| format!("{} uses {}", all.files[i].name, all.files[*j].name)));
    }
    found
}

/// The files outside `gpu/` that name wgpu.
fn users_of_wgpu(all: &Crate) -> Vec<&str> {
    let uses = all.files.iter().filter(|file| file.top() != "gpu" && file.names_crate("wgpu"));
    uses.map(|file| file.name.as_str()).collect()
}

/// The texts outside of the program that name a flag of its command line. A command that a text quotes may have flags.
fn texts_with_flags(all: &Crate) -> Vec<String> {
    let names_flag = |text: &&str| {
        let flag = |(at, _): (usize, &str)| {
            let begins = text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
            begins && text[at + 2..].starts_with(|next: char| next.is_ascii_lowercase())
        };
        !text.contains("`loraine ") && text.match_indices("--").any(flag)
    };
    // `setting.rs` has the function that writes a flag.
    let files = all.files.iter().filter(|file| file.top() != "cli" && file.name != "setting.rs");
    files.flat_map(|file| file.texts().filter(names_flag).map(|text| format!("{}: {text}", file.name))).collect()
}

#[test]
fn files_import_one_another_in_no_circle() {
    let found = circles_of(&sources());
    assert!(found.is_empty(), "circles of imports:\n{}", found.join("\n\n"));
}

#[test]
fn no_module_uses_one_above_it() {
    let found = uses_above(&sources());
    assert!(found.is_empty(), "uses of a module above:\n{}", found.join("\n"));
}

#[test]
fn only_gpu_names_wgpu() {
    let all = sources();
    assert!(users_of_wgpu(&all).is_empty(), "{:?}", users_of_wgpu(&all));
    assert!(all.files.iter().any(|file| file.names_crate("wgpu")));
}

#[test]
fn the_library_knows_no_flags() {
    let found = texts_with_flags(&sources());
    assert!(found.is_empty(), "name a setting by its key in `setting.rs`:\n{}", found.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_order() {
    let all = sources();
    let present: BTreeSet<&str> = all.files.iter().map(imports::File::top).collect();
    assert_eq!(present, ORDER.into_iter().collect());
}

#[test]
fn violations_are_found() {
    let planted = |sources: &[(&str, &str)]| {
        Crate::new(sources.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    };
    let all = planted(&[
        ("lib.rs", "pub mod error; pub mod quant; pub mod ops; pub use error::Error;"),
        ("error.rs", "pub struct Error;"),
        ("quant/mod.rs", "use crate::Error; use crate::ops::VariantFamily;"),
        ("ops/mod.rs", "use crate::quant; use wgpu::Buffer; pub struct VariantFamily;"),
    ]);
    assert_eq!(uses_above(&all), ["quant/mod.rs uses ops/mod.rs"]);
    assert_eq!(users_of_wgpu(&all), ["ops/mod.rs"]);
    let flags = r#"fn f() { ("lower --lr", "models--a--b", "run `loraine chat --model DIR`") }"#;
    let all = planted(&[("lib.rs", "mod train; mod cli;"), ("train.rs", flags), ("cli.rs", flags)]);
    assert_eq!(texts_with_flags(&all), ["train.rs: lower --lr"]);
    let all = planted(&[
        ("data/a.rs", "use super::b::B;"),
        ("data/b.rs", "fn f() { crate::data::a::f() }"),
        ("data/mod.rs", "mod a; mod b;"),
    ]);
    assert_eq!(circles_of(&all), ["data/a.rs uses data/b.rs\ndata/b.rs uses data/a.rs"]);
}
