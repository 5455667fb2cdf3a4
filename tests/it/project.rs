//! Facts that stand in several files of the project, held equal: versions, licenses, sources of packages.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn table(name: &str) -> toml::Table {
    read(name).parse().unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn strings(value: &toml::Value) -> BTreeSet<String> {
    value.as_array().expect("a list").iter().map(|v| v.as_str().expect("a text").to_owned()).collect()
}

/// The oldest Rust that the workflow checks is the one that Cargo.toml promises.
#[test]
fn the_workflow_checks_the_promised_rust_version() {
    let promised = table("Cargo.toml")["package"]["rust-version"].as_str().expect("a version").to_owned();
    let workflow = read(".github/workflows/ci.yml");
    let checked = workflow.lines().find_map(|line| line.trim().strip_prefix("RUST_MIN_VERSION: "));
    assert_eq!(checked.map(|version| version.trim_matches('"')), Some(promised.as_str()));
    assert!(read("README.md").contains(&format!("Rust](https://rustup.rs) {promised} or newer")));
}

#[test]
fn the_changelog_and_the_page_have_the_crates_version() {
    let version = table("Cargo.toml")["package"]["version"].as_str().expect("a version").to_owned();
    let changelog = read("CHANGELOG.md");
    let newest = changelog.lines().find_map(|line| line.strip_prefix("## ["));
    assert_eq!(newest.and_then(|line| line.split(']').next()), Some(version.as_str()));
    let page: Value = serde_json::from_str(&read("web/package.json")).expect("JSON");
    assert_eq!(page["version"], version);
}

/// True if the allowed licenses meet an SPDX expression. `OR` binds weaker than `AND`; `/` is an old way to write `OR`.
fn allows(allowed: &BTreeSet<String>, expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any_of(allowed, &words, &mut at);
    assert_eq!(at, words.len(), "not read to its end: {expression}");
    met
}

fn any_of(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut met = all_of(allowed, words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all_of(allowed, words, at);
    }
    met
}

fn all_of(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    let mut met = one(allowed, words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(allowed, words, at);
    }
    met
}

fn one(allowed: &BTreeSet<String>, words: &[&str], at: &mut usize) -> bool {
    *at += 1;
    if words.get(*at - 1) == Some(&"(") {
        let met = any_of(allowed, words, at);
        *at += 1;
        return met;
    }
    let mut name = words.get(*at - 1).copied().unwrap_or_default().to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
    }
    allowed.contains(&name)
}

/// All packages as cargo describes them. Where those of other systems were never downloaded: the packages for this system.
fn metadata() -> Option<Value> {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let version = String::from_utf8(version.stdout).expect("UTF-8");
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let here = format!("--filter-platform={host}");
    for filter in [None, Some(here.as_str())] {
        let manifest = concat!("--manifest-path=", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let arguments = ["metadata", "--offline", "--locked", "--format-version=1", manifest];
        let output = Command::new(env!("CARGO")).args(arguments).args(filter).output().expect("cargo runs");
        if output.status.success() {
            return Some(serde_json::from_slice(&output.stdout).expect("JSON"));
        }
    }
    eprintln!("skipped: cargo knows too little without a network");
    None
}

/// cargo-deny's first two checks, by what cargo itself knows and without a network. `make deny` runs the program where it is installed.
#[test]
fn dependencies_have_licenses_and_sources_that_are_allowed() {
    let deny = table("deny.toml");
    let allowed = strings(&deny["licenses"]["allow"]);
    let registries = strings(&deny["sources"]["allow-registry"]);
    let Some(metadata) = metadata() else { return };
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        let license = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no license"));
        assert!(allows(&allowed, license), "{name}: {license} is not among the licenses of deny.toml");
        if let Some(source) = package["source"].as_str() {
            let known = registries.iter().any(|registry| source == format!("registry+{registry}"));
            assert!(known, "{name} comes from {source}, which deny.toml does not allow");
        }
    }
}

#[test]
fn license_expressions_are_read() {
    let allowed = ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for met in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR Zlib AND MIT",
        "(GPL-3.0 OR MIT) AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allows(&allowed, met), "{met}");
    }
    for not_met in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND Apache-2.0", "Apache-2.0 WITH Classpath-exception"]
    {
        assert!(!allows(&allowed, not_met), "{not_met}");
    }
}

/// The files that `.dockerignore` lets into a container, by its one form of rule: everything is left out, then paths are let in.
fn container_files() -> Vec<String> {
    let rules = read(".dockerignore");
    let mut rules = rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"));
    rules.map(|rule| rule.strip_prefix('!').unwrap_or_else(|| panic!("{rule} lets nothing in")).to_owned()).collect()
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
}

/// Cargo finds every file of the program among those that a container is built from.
#[test]
fn the_container_gets_all_that_the_program_is_built_from() {
    let context = tempfile::tempdir().expect("a temporary directory");
    for file in container_files() {
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(&file), &context.path().join(&file));
    }
    let manifest = format!("--manifest-path={}/Cargo.toml", context.path().display());
    let arguments = ["metadata", "--no-deps", "--offline", "--locked", "--format-version=1", &manifest];
    let output = Command::new(env!("CARGO")).args(arguments).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(context.path().join("build.rs").is_file(), "the script that copies the shaders is not in the container");
    for included in included_files(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path()) {
        assert!(context.path().join(&included).is_file(), "{included} is not in the container");
    }
    let rust = table("Cargo.toml")["package"]["rust-version"].as_str().expect("a version").to_owned();
    assert!(read("Dockerfile").contains(&format!("FROM rust:{rust}-")), "the Dockerfile builds with another Rust");
}

/// Paths of the files that the sources in `dir` include as text or bytes, from the project's folder.
fn included_files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(included_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("a text");
            let shaders = text.split("shader!(\"").skip(1).filter_map(|part| part.split_once("\")"));
            found.extend(shaders.map(|(name, _)| format!("shaders/{name}")));
            for part in text.split("include_str!(\"").chain(text.split("include_bytes!(\"")).skip(1) {
                let Some((name, _)) = part.split_once("\")") else { continue };
                let full = path.parent().expect("a folder").join(name);
                if let (Ok(full), Ok(root)) =
                    (full.canonicalize(), Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize())
                {
                    found.extend(full.strip_prefix(root).ok().map(|name| name.display().to_string()));
                }
            }
        }
    }
    found
}

/// Everything that is built for a release is named as the installers look for it.
#[test]
fn the_installer_looks_for_the_archives_that_are_made() {
    let manifest = table("Cargo.toml");
    let binstall = &manifest["package"]["metadata"]["binstall"];
    let script = read("scripts/dist");
    assert!(script.contains("name=loraine-$version-$target"));
    let url = binstall["pkg-url"].as_str().expect("a text");
    assert!(url.ends_with("/v{ version }/loraine-{ version }-{ target }{ archive-suffix }"), "{url}");
    assert_eq!(binstall["bin-dir"].as_str(), Some("loraine-{ version }-{ target }/{ bin }{ binary-ext }"));
}
