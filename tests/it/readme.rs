//! The documents, taken at their word. Every command of the README runs in a copy of the tracked files that stands alone in its folder.
//! Commands of the other documents are parsed, and links between files are followed.
//!
//! A block of commands that can run anywhere is marked `sh`. One that installs, builds or needs a network is marked `console`: its
//! commands, after `$ `, are listed in [`COVERED`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Beginnings of commands that the README test does not run, and what runs them or their equivalent.
const COVERED: [(&str, &str); 8] = [
    ("cargo install --path .", "cargo builds the same program for these tests"),
    ("docker build", "project.rs checks which files the container is built from"),
    ("docker run", "project.rs checks which files the container is built from"),
    ("make web", "scripts/page-test builds the page"),
    ("make serve", "scripts/page-test serves the page"),
    ("make demo", "demo_and_chat.rs runs the demo"),
    ("loraine train --model HuggingFaceTB/", "hub.rs trains on a model of a local hub"),
    ("loraine chat --model HuggingFaceTB/", "hub.rs takes the same path from name to model"),
];

/// The lines of each fenced block that has one of the languages, with `\` at their ends joined to the next.
fn commands(text: &str, language: &str) -> Vec<String> {
    let (mut found, mut inside, mut language_fits) = (Vec::new(), false, false);
    let mut continued = String::new();
    for line in text.lines() {
        if let Some(mark) = line.trim_start().strip_prefix("```") {
            (inside, language_fits) = (!inside, !inside && mark.trim() == language);
        } else if language_fits {
            match line.trim_end().strip_suffix('\\') {
                Some(start) => continued += start,
                None => found.push(std::mem::take(&mut continued) + line.trim()),
            }
        }
    }
    assert!(!inside, "a block without an end");
    found.retain(|line| !line.is_empty() && !line.starts_with('#'));
    found
}

/// The commands that a reader types in `console` blocks.
fn typed(text: &str) -> Vec<String> {
    commands(text, "console").iter().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The Markdown files that a reader of the repository meets.
fn documents() -> Vec<PathBuf> {
    let of = |dir: PathBuf| std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    let all = of(ROOT.into()).chain(of(Path::new(ROOT).join("docs")));
    let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    found.sort();
    found
}

/// Copies the files that git tracks; None, with a printed reason, outside a clone.
fn copy_of_tracked_files() -> Option<tempfile::TempDir> {
    let output = Command::new("git").args(["-C", ROOT, "ls-files", "-z"]).output().ok();
    let Some(output) = output.filter(|output| output.status.success() && !output.stdout.is_empty()) else {
        eprintln!("skipped: {ROOT} is no clone, or there is no git");
        return None;
    };
    let copy = tempfile::tempdir().expect("a temporary directory");
    for name in String::from_utf8(output.stdout).expect("UTF-8").split_terminator('\0') {
        let (from, to) = (Path::new(ROOT).join(name), copy.path().join("loraine").join(name));
        // A file that is tracked but removed from the working tree is not part of the next commit either.
        if from.is_file() {
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            std::fs::copy(&from, &to).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    Some(copy)
}

/// A shell command with the built program on its path, and nothing of the user's own directories.
#[cfg(unix)]
fn shell(line: &str, home: &Path, directory: &Path) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_loraine")).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command.args(["-e", "-c", line]).current_dir(directory).stdin(Stdio::null());
    command.env("PATH", format!("{}:{path}", program.display()));
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home).env("HF_HUB_OFFLINE", "1").env_remove("LORAINE_GPU");
    // Shared by all tests, so that a GPU is measured once.
    command.env("LORAINE_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    if let Ok(adapter) = std::env::var("LORAINE_ADAPTER") {
        command.env("LORAINE_GPU", adapter);
    }
    command
}

#[cfg(unix)]
#[test]
fn every_command_of_the_readme_runs_in_a_fresh_clone() {
    let readme = read(&Path::new(ROOT).join("README.md"));
    for line in typed(&readme) {
        assert!(COVERED.iter().any(|(start, _)| line.starts_with(start)), "no test covers `{line}`");
    }
    let Some(copy) = copy_of_tracked_files() else { return };
    let clone = copy.path().join("loraine");
    let lines = commands(&readme, "sh");
    assert!(lines.len() >= 5, "{lines:?}");
    let mut outputs = Vec::new();
    for line in lines {
        assert!(!line.contains("../"), "`{line}` leaves the clone");
        let output = shell(&line, copy.path(), &clone).output().expect("sh runs");
        let [shown, problems] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "`{line}`\n{shown}{problems}");
        outputs.push(shown);
    }
    let promise =
        readme.split_once("The answer to the second command is `").and_then(|(_, rest)| rest.split('`').next());
    if let Some(promise) = promise {
        assert!(
            outputs[1].contains(promise),
            "the README promises {promise:?}, the second command says\n{}",
            outputs[1]
        );
    }
}

/// `--help` ends a command line after all that stands before it was parsed.
#[cfg(unix)]
#[test]
fn every_command_of_the_documents_is_understood() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut count = 0;
    for document in documents() {
        let text = read(&document);
        for line in [commands(&text, "sh"), typed(&text)].concat() {
            let Some(at) = line.find("loraine ").filter(|at| line[..*at].is_empty() || line[..*at].ends_with("| "))
            else {
                continue;
            };
            let call = line[at..].split([';', '|', '>', '&']).next().expect("a first part").trim();
            let output = shell(&format!("{call} --help"), home.path(), Path::new(ROOT)).output().expect("sh runs");
            let problems = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: `{call}`\n{problems}", document.display());
            count += 1;
        }
    }
    assert!(count >= 20, "{count} commands");
}

#[test]
fn links_between_documents_lead_to_files() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = read(&document);
        let folder = document.parent().expect("a folder");
        for rest in text.split("](").skip(1) {
            let link = rest.split([')', '#', ' ']).next().expect("a first part");
            let elsewhere = link.is_empty() || link.contains("://") || link.starts_with("mailto:");
            if !elsewhere && !folder.join(link).exists() {
                missing.push(format!("{} links to {link}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn commands_are_found_in_their_blocks() {
    let text = "a\n```sh\nloraine info\n# why\n\nloraine train \\\n  --lr 1\n```\n```console\n$ make web\nbuilt\n```\n```toml\nx = 1\n```\n";
    assert_eq!(commands(text, "sh"), ["loraine info", "loraine train --lr 1"]);
    assert_eq!(typed(text), ["make web"]);
}
