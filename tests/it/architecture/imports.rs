//! Which file of the crate uses which other, from the paths that stand in its code.

use std::collections::{BTreeMap, BTreeSet};

use super::tokens::{Token, tokens, without_tests};

/// A path of modules and names, from the crate's root.
type Path = Vec<String>;

/// One source file.
pub struct File {
    /// Under `src/`, as `gpu/device.rs`.
    pub name: String,
    module: Path,
    /// Without the items of tests.
    tokens: Vec<Token>,
    /// Names that its `use` lines bring in, and the path of each as it is written.
    aliases: BTreeMap<String, Path>,
    exported: BTreeSet<String>,
    /// Modules all of whose public names it re-exports.
    globs: Vec<Path>,
    /// Each path that its code names, with the number of inline modules around it.
    paths: Vec<(Path, usize)>,
}

pub struct Crate {
    pub files: Vec<File>,
    by_module: BTreeMap<Path, usize>,
}

impl Crate {
    /// From names under `src/` and texts.
    pub fn new(sources: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut files = Vec::new();
        let mut of_tests = BTreeSet::new();
        for (name, source) in sources {
            let (tokens, test_modules) = without_tests(&tokens(&source));
            let module = module_of(&name);
            // A file that #[path] names stands in its parent's folder, under a longer name.
            for test in test_modules {
                of_tests.insert([&module[..], std::slice::from_ref(&test)].concat());
                of_tests.extend(
                    module.last().map(|last| [&module[..module.len() - 1], &[format!("{last}_{test}")]].concat()),
                );
            }
            files.push(File::new(name, module, tokens));
        }
        files.retain(|file| !of_tests.iter().any(|test| file.module.starts_with(test)));
        let by_module = files.iter().enumerate().map(|(i, file)| (file.module.clone(), i)).collect();
        Self { files, by_module }
    }

    /// The files that each file uses, itself aside, by index.
    pub fn uses(&self) -> Vec<BTreeSet<usize>> {
        let uses_of = |(i, file): (usize, &File)| {
            let used = file.paths.iter().filter_map(|(path, depth)| self.file_of(file, path, *depth, 0));
            used.filter(|used| *used != i).collect()
        };
        self.files.iter().enumerate().map(uses_of).collect()
    }

    /// The file in which a path that `file` names ends; None for other crates.
    fn file_of(&self, file: &File, path: &Path, depth: usize, steps: usize) -> Option<usize> {
        // A re-export that leads back to itself does not compile; the bound only keeps this test from a hang.
        assert!(steps < 20, "{}: {} leads nowhere", file.name, path.join("::"));
        let (first, rest) = path.split_first()?;
        let root = match first.as_str() {
            "crate" | "loraine" => return self.descend(vec![], rest, steps),
            "self" => return self.descend(file.module.clone(), rest, steps),
            "super" => {
                let supers = path.iter().take_while(|name| *name == "super").count();
                let up = supers.saturating_sub(depth);
                let module = file.module[..file.module.len().checked_sub(up)?].to_vec();
                return self.descend(module, &path[supers..], steps);
            }
            name => name,
        };
        if let Some(full) = file.aliases.get(root)
            && full.first() != Some(first)
        {
            return self.file_of(file, &[&full[..], rest].concat(), 0, steps + 1);
        }
        let child = [&file.module[..], std::slice::from_ref(first)].concat();
        self.by_module.contains_key(&child).then(|| self.descend(child, rest, steps)).flatten()
    }

    /// Goes down from a module as far as modules and re-exports lead.
    fn descend(&self, mut module: Path, names: &[String], steps: usize) -> Option<usize> {
        let mut names = names;
        while let Some((name, rest)) = names.split_first() {
            let child = [&module[..], std::slice::from_ref(name)].concat();
            if self.by_module.contains_key(&child) {
                (module, names) = (child, rest);
                continue;
            }
            let file = &self.files[*self.by_module.get(&module)?];
            if file.exported.contains(name) {
                let full = [&file.aliases[name][..], rest].concat();
                return self.file_of(file, &full, 0, steps + 1).or_else(|| self.by_module.get(&module).copied());
            }
            for glob in &file.globs {
                let target = self.file_of(file, glob, 0, steps + 1);
                if let Some(target) = target.filter(|t| self.files[*t].defines(name)) {
                    return Some(target);
                }
            }
            break;
        }
        self.by_module.get(&module).copied()
    }
}

impl File {
    fn new(name: String, module: Path, tokens: Vec<Token>) -> Self {
        let (aliases, exported, globs, paths) = Default::default();
        let mut file = Self { name, module, tokens, aliases, exported, globs, paths };
        file.read();
        file
    }

    /// The first folder under `src/`, or the file's own name there.
    pub fn top(&self) -> &str {
        self.module.first().map_or("crate", String::as_str)
    }

    pub fn names_crate(&self, name: &str) -> bool {
        self.paths.iter().any(|(path, _)| path[0] == name)
    }

    /// The string literals, without those of tests.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter_map(|token| match token {
            Token::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn defines(&self, name: &str) -> bool {
        const KINDS: [&str; 7] = ["fn", "struct", "enum", "trait", "const", "static", "type"];
        self.aliases.contains_key(name)
            || self
                .tokens
                .windows(2)
                .any(|t| t[0].word().is_some_and(|w| KINDS.contains(&w)) && t[1].word() == Some(name))
    }

    /// Collects aliases first, so that a path is read with all names known.
    fn read(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        let mut rest = Vec::new();
        let (mut i, mut depth, mut inline) = (0, 0, Vec::new());
        while i < tokens.len() {
            match &tokens[i] {
                Token::Word(word) if word == "use" && !tokens.get(i + 1).is_some_and(|t| t.is('<')) => {
                    let end = (i..tokens.len()).find(|j| tokens[*j].is(';')).unwrap_or(tokens.len());
                    let public = i > 0 && (tokens[i - 1].word() == Some("pub") || tokens[i - 1].is(')'));
                    self.read_use(&tokens[i + 1..end], public, inline.len());
                    i = end + 1;
                    continue;
                }
                Token::Word(word) if word == "mod" && tokens.get(i + 2).is_some_and(|t| t.is('{')) => {
                    inline.push(depth)
                }
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => {
                    depth -= 1;
                    inline.pop_if(|outer| *outer == depth);
                }
                _ => {}
            }
            rest.push((i, inline.len()));
            i += 1;
        }
        let mut position = 0;
        while position < rest.len() {
            let (i, depth) = rest[position];
            let path = path_at(&tokens, i);
            // A field or a method is no path, nor is one name that no `use` line brought in.
            let method = i > 0 && tokens[i - 1].is('.');
            if path.len() > 1 || path.first().is_some_and(|name| !method && self.exported.contains(name)) {
                position += 2 * path.len() - 1;
                self.paths.push((path, depth));
            } else {
                position += 1;
            }
        }
        self.tokens = tokens;
    }

    fn read_use(&mut self, tree: &[Token], public: bool, depth: usize) {
        let mut leaves = Vec::new();
        read_tree(tree, &[], &mut leaves);
        for (path, alias) in leaves {
            // A module that only hands on the names of its own files does not use them.
            let own_child = public && depth == 0 && !["crate", "super", "loraine"].contains(&path[0].as_str());
            if !own_child {
                self.paths.push((path.clone(), depth));
            }
            match alias {
                Some(alias) => {
                    if public && depth == 0 {
                        self.exported.insert(alias.clone());
                    }
                    if depth == 0 || !self.aliases.contains_key(&alias) {
                        self.aliases.insert(alias, path);
                    }
                }
                None if public => self.globs.push(path),
                None => {}
            }
        }
    }
}

/// `gpu/device.rs` is `gpu::device`; `gpu/mod.rs` and `gpu.rs` are `gpu`; `lib.rs` and `main.rs` are the root.
fn module_of(name: &str) -> Path {
    let stem = name.strip_suffix(".rs").unwrap_or(name);
    let mut module: Path = stem.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&module[module.len() - 1].as_str()) {
        module.pop();
    }
    module
}

/// The path that begins at a token; empty where none does.
fn path_at(tokens: &[Token], start: usize) -> Path {
    let mut path = Path::new();
    let mut i = start;
    while let Some(word) = tokens.get(i).and_then(Token::word) {
        path.push(word.to_owned());
        if tokens.get(i + 1) != Some(&Token::Path) {
            break;
        }
        i += 2;
    }
    path
}

/// The leaves of a `use` tree, each with the name that it brings in; None for `*`.
fn read_tree(tree: &[Token], prefix: &[String], leaves: &mut Vec<(Path, Option<String>)>) {
    let mut path = prefix.to_vec();
    let mut i = 0;
    while i < tree.len() {
        match &tree[i] {
            Token::Word(word) if word == "as" => {
                let alias = tree.get(i + 1).and_then(Token::word).map(str::to_owned);
                leaves.push((path, alias));
                return;
            }
            Token::Word(word) if word == "self" && !prefix.is_empty() => {}
            Token::Word(word) => path.push(word.clone()),
            Token::Mark('*') => {
                leaves.push((path, None));
                return;
            }
            Token::Mark('{') => {
                let close = tree.len() - 1;
                let mut depth = 0;
                let mut start = i + 1;
                for j in i + 1..=close {
                    match &tree[j] {
                        Token::Mark('{') => depth += 1,
                        Token::Mark('}') if j < close => depth -= 1,
                        Token::Mark(',') if depth == 0 => {
                            read_tree(&tree[start..j], &path, leaves);
                            start = j + 1;
                        }
                        _ => {}
                    }
                }
                if start < close {
                    read_tree(&tree[start..close], &path, leaves);
                }
                return;
            }
            _ => {}
        }
        i += 1;
    }
    let alias = path.last().cloned();
    leaves.push((path, alias));
}

/// The groups of more than one node that reach one another.
pub fn circles(uses: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let reach: Vec<BTreeSet<usize>> = (0..uses.len())
        .map(|start| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
            while let Some(node) = open.pop() {
                open.extend(uses[node].iter().filter(|next| seen.insert(**next)));
            }
            seen
        })
        .collect();
    let group = |node: usize| -> Vec<usize> {
        reach[node].iter().copied().filter(|other| reach[*other].contains(&node)).collect()
    };
    let groups: BTreeSet<Vec<usize>> = (0..uses.len()).map(group).filter(|group| group.len() > 1).collect();
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sources: &[(&str, &str)]) -> Crate {
        Crate::new(sources.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
    }

    /// `a.rs -> b.rs` for each use.
    fn arrows(sources: &[(&str, &str)]) -> Vec<String> {
        let all = of(sources);
        let arrow = |(i, used): (usize, BTreeSet<usize>)| {
            used.into_iter().map(|j| format!("{} -> {}", all.files[i].name, all.files[j].name)).collect::<Vec<_>>()
        };
        all.uses().into_iter().enumerate().flat_map(arrow).collect()
    }

    #[test]
    fn each_way_to_name_a_file_is_seen() {
        for text in [
            "use crate::b::c::D;",
            "use crate::{b::{c::{D, E}}, std::x};",
            "use crate::b::c;",
            "use loraine::b::c::D as F;",
            "use super::b::c::*;",
            "fn f() { crate::b::c::d(); }",
            "use crate::b; fn f() -> b::c::D { }",
            "use crate::b::{self as other}; fn f() { other::c::d() }",
            "use crate::b::Shown;",
            "use crate::b::{self}; fn f() -> b::Shown { }",
            "use crate::b::Moved;",
        ] {
            let b = "pub mod c; pub mod e; pub use c::D as Shown; pub use c::*; pub use e::E;";
            let found = arrows(&[
                ("a.rs", text),
                ("b/mod.rs", b),
                ("b/c.rs", "pub struct Moved;"),
                ("b/e.rs", "pub struct E;"),
            ]);
            assert!(found.contains(&"a.rs -> b/c.rs".to_owned()), "{text}: {found:?}");
            assert!(!found.contains(&"a.rs -> b/e.rs".to_owned()), "{text}: {found:?}");
        }
    }

    #[test]
    fn files_of_one_folder_are_told_apart() {
        let found = arrows(&[
            ("m/mod.rs", "mod x; mod y; pub use x::X; fn f(t: X) { y::go() }"),
            ("m/x.rs", "use super::y::Y; pub mod inline { use super::super::z; }"),
            ("m/y.rs", "struct Y; // use super::x::X;\n const A: &str = \"super::x::X\";"),
            ("m/z.rs", "#[cfg(test)] mod tests { use super::super::x::X; } #[cfg(test)] mod more;"),
            ("m/z/more.rs", "use crate::m::x;"),
        ]);
        assert_eq!(found, ["m/mod.rs -> m/x.rs", "m/mod.rs -> m/y.rs", "m/x.rs -> m/y.rs", "m/x.rs -> m/z.rs"]);
    }

    #[test]
    fn other_crates_are_no_files() {
        let all =
            of(&[("a.rs", "use wgpu::Buffer; fn f() { std::mem::drop(1); let x = Self::b(); x.b.c() }"), ("b.rs", "")]);
        assert_eq!(all.uses(), [BTreeSet::new(), BTreeSet::new()]);
        assert!(all.files[0].names_crate("wgpu") && !all.files[1].names_crate("wgpu"));
    }

    #[test]
    fn circles_are_found() {
        let graph =
            |uses: &[&[usize]]| -> Vec<BTreeSet<usize>> { uses.iter().map(|u| u.iter().copied().collect()).collect() };
        assert!(circles(&graph(&[&[1, 2], &[2], &[]])).is_empty());
        assert_eq!(circles(&graph(&[&[1], &[2], &[0], &[0, 4], &[3]])), [vec![0, 1, 2], vec![3, 4]]);
    }
}
