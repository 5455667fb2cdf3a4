//! Finds the files of a data set's splits by their names, as the datasets library does: `train.jsonl`, shards such as
//! `data/train-00000-of-00004.parquet`, or a directory for each split.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::opened::{kind_of, plain_name};
use crate::{Error, Result, files};

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    /// The part to train on.
    Train,
    /// The part to evaluate on while training.
    Valid,
    /// The part to evaluate on after training.
    Test,
}

impl Split {
    /// Words in names of files that mean this split.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "training"],
            Self::Valid => &["valid", "validation", "val", "dev"],
            Self::Test => &["test", "testing", "eval", "evaluation"],
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        [Self::Train, Self::Valid, Self::Test].into_iter().find(|split| split.words().contains(&word))
    }
}

/// Levels of directories that are looked through.
const DEPTH: usize = 3;
/// Files that are looked at; a directory with more is hardly a data set.
const MOST_FILES: usize = 10_000;

/// The files of one split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitFiles {
    pub files: Vec<PathBuf>,
    /// Data files of the directory that belong to no split.
    pub left_out: Vec<PathBuf>,
}

/// Separates the split from a source such as `data:validation`. A path that exists is a path.
pub fn named_split(source: &Path) -> (PathBuf, Option<String>) {
    let parts = source.to_str().filter(|_| !files::exists(source)).and_then(|text| text.rsplit_once(':'));
    let is_word =
        |split: &str| !split.is_empty() && split.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    match parts {
        Some((dir, split)) if is_word(split) && !dir.is_empty() && files::is_dir(Path::new(dir)) => {
            (dir.into(), Some(split.to_owned()))
        }
        _ => (source.to_owned(), None),
    }
}

/// Returns the files of `split` in a directory. A file, and a directory with a named split (`data:validation`), are the training data
/// alone.
///
/// # Errors
/// The names of the files do not say which of them to read, or shards are missing.
pub(super) fn files_of(source: &Path, split: Split) -> Result<Option<SplitFiles>> {
    let (path, exact) = named_split(source);
    if !files::is_dir(&path) {
        let files = vec![path];
        return Ok((split == Split::Train).then_some(SplitFiles { files, left_out: Vec::new() }));
    }
    if exact.is_some() && split != Split::Train {
        return Ok(None);
    }
    let mut names = Vec::new();
    list(&path, "", DEPTH, &mut names)?;
    names.sort();
    let wanted = exact.as_deref().map_or(Wanted::Split(split), Wanted::Named);
    let chosen = choose(&names, wanted).map_err(|problem| Error::file(&path, problem))?;
    let full = |names: Vec<String>| names.into_iter().map(|name| path.join(name)).collect();
    Ok(chosen.map(|Chosen { files, left_out }| SplitFiles { files: full(files), left_out: full(left_out) }))
}

/// Lists the data files below a directory as paths from it.
fn list(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let entries = files::names(dir).map_err(|e| Error::file(dir, format!("cannot be read: {e}")))?;
    for name in entries.into_iter().filter(|name| !name.starts_with(['.', '_'])) {
        let path = dir.join(&name);
        match files::is_dir(&path) {
            true if depth > 1 => list(&path, &format!("{prefix}{name}/"), depth - 1, names)?,
            true => {}
            false if names.len() < MOST_FILES => names.push(format!("{prefix}{name}")),
            false => {}
        }
    }
    Ok(())
}

/// True for a path whose name is that of a data file.
pub fn is_data_file(path: &Path) -> bool {
    kind_of(path).is_some()
}

/// What to choose among the files of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// A split by the words that usually mean it, such as `validation` or `dev`.
    Split(Split),
    /// A split by its name, such as `train_sft`.
    Named(&'a str),
}

/// Files of a split by their paths in the data set, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Files of the split.
    pub files: Vec<String>,
    /// Data files that belong to no split.
    pub left_out: Vec<String>,
}

/// A data file by its name.
#[derive(Clone, Debug)]
struct Named<'a> {
    path: &'a str,
    /// The name without extension and number of a shard: `train_sft`.
    base: String,
    extension: String,
    /// Place and number of shards, from `00001-of-00004`.
    shard: Option<(usize, usize)>,
    split: Option<Split>,
    /// Directory of one of several versions of the data, empty for the only one.
    version: String,
}

/// Chooses the files of a split among all files of a data set, given as paths with `/`. `None` where there is no such split.
///
/// # Errors
/// A sentence without the data set's name: the names do not say which files to read, or shards are missing.
pub fn choose(names: &[String], wanted: Wanted) -> Result<Option<Chosen>, String> {
    let all: Vec<Named> = names.iter().filter_map(|name| named(name)).collect();
    let versions: BTreeSet<&str> = all.iter().map(|file| file.version.as_str()).collect();
    let version = match versions.iter().copied().collect::<Vec<_>>()[..] {
        [] => return Ok(None),
        [one] => one,
        _ if versions.contains("") => "",
        _ if versions.contains("default") => "default",
        _ => {
            let listed: Vec<_> = versions.into_iter().collect();
            return Err(format!("holds several data sets, {}; name the directory of one of them", listed.join(", ")));
        }
    };
    let mut all: Vec<Named> = all.iter().filter(|file| file.version == version).cloned().collect();
    if all.iter().all(|file| file.split.is_none()) && !matches!(wanted, Wanted::Named(_)) {
        // Without a name for a split everything is training data.
        all.iter_mut().for_each(|file| file.split = Some(Split::Train));
    }
    let bases =
        |split: Split| all.iter().filter(|f| f.split == Some(split)).map(|f| f.base.as_str()).collect::<BTreeSet<_>>();
    let base: Option<String> = match wanted {
        Wanted::Named(name) => {
            let found = all.iter().find(|file| file.base == name);
            let found =
                found.or_else(|| all.iter().find(|file| file.split.is_some() && file.split == Split::of_word(name)));
            let known: BTreeSet<&str> = all.iter().map(|file| file.base.as_str()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            Some(found.ok_or_else(|| format!("has no split {name}; it has {}", known.join(", ")))?.base.clone())
        }
        Wanted::Split(split) => {
            let known = bases(split);
            let usual = split.words().iter().find(|word| known.contains(**word));
            let shards = all.iter().any(|file| file.split == Some(split) && file.shard.is_some());
            match (usual, known.len()) {
                (Some(usual), _) => Some((*usual).to_owned()),
                (None, 0) => return Ok(None),
                (None, 1) => known.first().map(|&base| base.to_owned()),
                (None, _) if shards => {
                    let known: Vec<&str> = known.into_iter().collect();
                    let one = known.first().copied().unwrap_or_default();
                    return Err(format!("has the splits {}; choose one, such as DATA:{one}", known.join(" and ")));
                }
                (None, _) => None,
            }
        }
    };
    let split_of_base =
        base.as_ref().and_then(|base| all.iter().find(|file| file.base == *base)).and_then(|file| file.split);
    let is_chosen = |file: &&Named| match (&base, wanted) {
        (Some(base), _) => file.base == *base && file.split == split_of_base,
        (None, Wanted::Split(split)) => file.split == Some(split),
        (None, Wanted::Named(_)) => false,
    };
    let chosen: Vec<&Named> = all.iter().filter(is_chosen).collect();
    check(&chosen)?;
    let left_out = all.iter().filter(|file| file.split.is_none() && !is_chosen(file)).map(|file| file.path.to_owned());
    let files = chosen.iter().map(|file| file.path.to_owned()).collect();
    Ok(Some(Chosen { files, left_out: left_out.collect() }))
}

/// Checks that no two files hold the same data in two formats, and that no shard is missing.
fn check(chosen: &[&Named]) -> Result<(), String> {
    let mut first: BTreeMap<(&str, &str), &Named> = BTreeMap::new();
    for file in chosen {
        let dir = file.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let other = first.entry((dir, &file.base)).or_insert(file);
        if other.extension != file.extension {
            return Err(format!("holds {} and {}; keep one of them", other.path, file.path));
        }
    }
    let mut sets: BTreeMap<(&str, &str, usize), BTreeSet<usize>> = BTreeMap::new();
    for file in chosen {
        let Some((at, of)) = file.shard else { continue };
        let dir = file.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        sets.entry((dir, &file.base, of)).or_default().insert(at);
    }
    for ((_, base, of), there) in sets {
        if let Some(missing) = (0..of).find(|at| !there.contains(at)) {
            return Err(format!("lacks {base}-{missing:05}-of-{of:05}: {} of {of} shards are there", there.len()));
        }
    }
    Ok(())
}

/// Names of files that describe a data set or belong to a model.
const DESCRIPTIONS: [&str; 19] = [
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "dataset_info",
    "dataset_infos",
    "dataset_dict",
    "state",
    "requirements",
    "config",
    "generation_config",
    "tokenizer",
    "tokenizer_config",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "adapter_config",
    "merges",
];

/// Reads the name of a data file; `None` for other files.
fn named(path: &str) -> Option<Named<'_>> {
    kind_of(Path::new(path))?;
    let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
    let inner = plain_name(name);
    let (stem, extension) = inner.rsplit_once('.')?;
    // datasets keeps results of its own beside the data that it saved.
    if DESCRIPTIONS.contains(&stem)
        || inner.ends_with(".index.json")
        || stem.starts_with("cache-") && extension == "arrow"
    {
        return None;
    }
    let (mut base, shard) = base_of(stem);
    let word_of = |text: &str| text.split(|c: char| !c.is_ascii_alphabetic()).find_map(Split::of_word);
    let mut split = word_of(&base);
    let mut parts: Vec<&str> = dirs.split('/').filter(|part| !part.is_empty()).collect();
    if split.is_none()
        && let Some(at) = parts.iter().rposition(|part| word_of(&part.to_ascii_lowercase()).is_some())
    {
        let dir = parts.remove(at).to_ascii_lowercase();
        (split, base) = (word_of(&dir), dir);
    }
    parts.retain(|part| *part != "data");
    Some(Named { path, base, extension: extension.to_owned(), shard, split, version: parts.join("/") })
}

/// Separates the number of a shard from a name: `train-00001-of-00004`, `train-00001-of-00004-0f3a`, `part_3`, `train.2`.
fn base_of(stem: &str) -> (String, Option<(usize, usize)>) {
    if let Some((before, of)) = stem.split_once("-of-") {
        let of = of.split('-').next().unwrap_or_default();
        if let Some((base, at)) = before.rsplit_once('-')
            && let (Ok(at), Ok(of)) = (at.parse(), of.parse())
        {
            return (base.to_owned(), Some((at, of)));
        }
    }
    let digits = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    let base = digits.trim_end_matches(['-', '_', '.', ' ']);
    let base = ["part", "shard"].iter().find_map(|word| base.strip_suffix(word)).unwrap_or(base);
    match base.trim_end_matches(['-', '_', '.', ' ']) {
        _ if digits.len() == stem.len() => (stem.to_owned(), None),
        "" => (stem.to_owned(), None),
        base => (base.to_owned(), None),
    }
}

/// Sentence for a directory without training data.
pub fn nothing_to_train(dir: &Path) -> Error {
    let has_files = files::names(dir).is_ok_and(|names| names.iter().any(|name| !name.starts_with('.')));
    match has_files {
        true => Error::file(
            dir,
            "holds no train.jsonl, train.json, train.csv, train.parquet or train.txt, nor another data file",
        ),
        false => Error::file(dir, "holds no train.jsonl or other data file: it is empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], wanted: Wanted) -> Result<Option<Vec<String>>, String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        choose(&names, wanted).map(|chosen| chosen.map(|chosen| chosen.files))
    }

    const TRAIN: Wanted = Wanted::Split(Split::Train);
    const VALID: Wanted = Wanted::Split(Split::Valid);
    const TEST: Wanted = Wanted::Split(Split::Test);

    #[test]
    fn splits_are_found_by_their_names() {
        let of = |names: &[&str], wanted| chosen(names, wanted).unwrap().unwrap_or_default();
        let files = ["README.md", "dataset_infos.json", "test.csv", "train.jsonl.gz", "validation.jsonl"];
        assert_eq!(of(&files, TRAIN), ["train.jsonl.gz"]);
        assert_eq!(of(&files, VALID), ["validation.jsonl"]);
        assert_eq!(of(&files, TEST), ["test.csv"]);
        for name in ["valid.json", "val.parquet", "dev.jsonl", "my_data-dev.txt", "validation-00000-of-00001.parquet"] {
            assert_eq!(of(&["train.json", name], VALID), [name]);
        }
        let hub = [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002-0a.parquet",
            "data/train-00001-of-00002-1b.parquet",
        ];
        assert_eq!(of(&hub, TRAIN), hub[2..]);
        assert_eq!(of(&hub, VALID), [""; 0]);
        let saved = [
            "dataset_dict.json",
            "test/data-00000-of-00001.arrow",
            "test/state.json",
            "train/cache-1.arrow",
            "train/data-00000-of-00001.arrow",
            "train/dataset_info.json",
        ];
        assert_eq!(of(&saved, TRAIN), [saved[4]]);
        assert_eq!(of(&saved, TEST), [saved[1]]);
        assert_eq!(of(&["a.jsonl", "b.jsonl"], TRAIN), ["a.jsonl", "b.jsonl"]);
        assert_eq!(of(&["train-a.jsonl", "train-b.jsonl", "other.jsonl"], TRAIN), ["train-a.jsonl", "train-b.jsonl"]);
        assert_eq!(of(&["Train1.CSV", "Train2.CSV"], TRAIN), ["Train1.CSV", "Train2.CSV"]);
        assert_eq!(
            of(&["train_sft-00000-of-00001.parquet", "train_gen-00000-of-00001.parquet"], Wanted::Named("train_sft")),
            ["train_sft-00000-of-00001.parquet"]
        );
        assert_eq!(of(&["train.json", "validation.json"], Wanted::Named("dev")), ["validation.json"]);
    }

    #[test]
    fn names_that_leave_a_choice_are_refused() {
        for (names, wanted, says) in [
            (&["train.jsonl", "train.txt"][..], TRAIN, "holds train.jsonl and train.txt; keep one"),
            (
                &["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
                TRAIN,
                "lacks train-00001-of-00003: 2 of 3",
            ),
            (&["main/train.json", "socratic/train.json"], TRAIN, "several data sets, main, socratic"),
            (
                &["data/train_gen-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet"],
                TRAIN,
                "splits train_gen and train_sft; choose one, such as DATA:train_gen",
            ),
            (&["train.json", "test.json"], Wanted::Named("nothing"), "no split nothing; it has test, train"),
        ] {
            let message = chosen(names, wanted).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn other_files_of_a_directory_are_told() {
        let names = ["extra.jsonl", "train.jsonl", "test.jsonl"].map(str::to_owned);
        assert_eq!(choose(&names, TRAIN).unwrap().unwrap().left_out, ["extra.jsonl"]);
    }
}
