//! GGUF files of the hub's repositories: `owner/name:Q4_K_M`, or `owner/name:FILE.gguf`.

use std::fmt;
use std::path::PathBuf;

use super::fetch::{Found, cached_snapshot, error, find};
use super::fetch_dataset::{DEPTH, list};
use super::settings::HubSettings;
use super::{HubModel, is_plain_path};
use crate::Result;

const ENDING: &str = ".gguf";

/// One model in GGUF of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubGguf {
    /// The repository and its revision.
    pub repo: HubModel,
    /// The name of the file, or what its name ends in, such as `Q4_K_M`.
    pub which: String,
}

impl HubGguf {
    /// Parses `owner/name:WHICH`, perhaps with `@revision` before the colon, or the address of a GGUF file. Returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let of_address = || {
            let (page, file) = text.split_once("/blob/").or_else(|| text.split_once("/resolve/"))?;
            let (revision, file) = file.split(['?', '#']).next()?.split_once('/')?;
            let repo = HubModel::parse(&format!("{page}/tree/{revision}"))?;
            file.ends_with(ENDING).then(|| (repo, file.to_owned()))
        };
        let named = || {
            let (repo, which) = text.rsplit_once(':')?;
            Some((HubModel::parse(repo)?, which.to_owned()))
        };
        let (repo, which) = named().or_else(of_address)?;
        is_plain_path(&which).then_some(Self { repo, which })
    }
}

impl fmt::Display for HubGguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repo, self.which)
    }
}

/// Downloads a GGUF file that the cache lacks, with the other files of a split model, and returns its path in the cache. `progress`
/// receives the name of a file, the bytes downloaded so far and the file's size.
///
/// # Errors
/// The repository does not exist or is not accessible, it has no such file or several, or a file does not arrive whole.
pub fn fetch_gguf(gguf: &HubGguf, settings: &HubSettings, mut progress: impl FnMut(&str, u64, u64)) -> Result<PathBuf> {
    let cached = || -> Option<PathBuf> {
        let dir = cached_snapshot(&gguf.repo, &settings.cache)?;
        let mut names = Vec::new();
        list(&dir, "", DEPTH, &mut names);
        let chosen = choose(names.iter().map(String::as_str), &gguf.which).ok()?;
        Some(dir.join(&chosen[0]))
    };
    let download = match find(&gguf.repo, settings, &format!("{} ", gguf.which), cached)? {
        Found::Cached(file) => return Ok(file),
        Found::Listed(download) => download,
    };
    let names = download.info.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| is_plain_path(name));
    let chosen = choose(names, &gguf.which).map_err(|problem| error(&gguf.repo, problem))?;
    for name in &chosen {
        download.file(name, &mut progress)?;
    }
    Ok(download.snapshot().join(&chosen[0]))
}

/// The files of the model that `which` names, the first one first.
///
/// # Errors
/// No file, or files of several models; the problem lists what there is.
fn choose<'a>(names: impl Iterator<Item = &'a str>, which: &str) -> Result<Vec<String>, String> {
    let names: Vec<&str> = names.filter(|name| name.ends_with(ENDING)).collect();
    let mut firsts: Vec<&str> =
        names.iter().filter(|name| part(name).is_none_or(|part| part.number == 1)).copied().collect();
    firsts.sort_unstable();
    let exact: Vec<&str> = firsts.iter().filter(|name| **name == which).copied().collect();
    let tagged = || firsts.iter().filter(|name| has_tag(name, which)).copied().collect();
    let found: Vec<&str> = if exact.is_empty() { tagged() } else { exact };
    match found[..] {
        [first] => match part(first) {
            None => Ok(vec![first.to_owned()]),
            Some(Part { stem, total, .. }) => {
                let all: Vec<String> =
                    (1..=total).map(|number| format!("{stem}-{number:05}-of-{total:05}{ENDING}")).collect();
                match all.iter().find(|name| !names.contains(&name.as_str())) {
                    None => Ok(all),
                    Some(missing) => Err(format!("has no {missing}, a part of {first}")),
                }
            }
        },
        [] if firsts.is_empty() => Err("has no GGUF file".to_owned()),
        [] => Err(format!("has no GGUF file `{which}`; there are {}", firsts.join(", "))),
        _ => Err(format!("has several GGUF files for `{which}`: {}; give the name of one", found.join(", "))),
    }
}

/// A file of a split model.
struct Part<'a> {
    stem: &'a str,
    number: usize,
    total: usize,
}

fn part(name: &str) -> Option<Part<'_>> {
    let (rest, total) = name.strip_suffix(ENDING)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    Some(Part { stem, number: digits(number)?, total: digits(total)? })
}

/// True if the name ends in `tag` before its ending, in any case: `model-Q4_K_M.gguf`.
fn has_tag(name: &str, tag: &str) -> bool {
    let stem = part(name).map_or_else(|| name.trim_end_matches(ENDING), |part| part.stem).to_ascii_lowercase();
    let before = stem.strip_suffix(&tag.to_ascii_lowercase());
    before.is_some_and(|before| before.ends_with(['-', '.', '_', '/']) || before.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_beside_their_repository() {
        for (text, shown) in [
            ("a/b:Q4_K_M", "a/b:Q4_K_M"),
            ("a/b-GGUF@v1:x.Q8_0.gguf", "a/b-GGUF@v1:x.Q8_0.gguf"),
            ("https://huggingface.co/a/b/blob/main/sub/x.gguf", "a/b:sub/x.gguf"),
            ("https://huggingface.co/a/b/resolve/v2/x.gguf?download=true", "a/b@v2:x.gguf"),
        ] {
            assert_eq!(HubGguf::parse(text).expect(text).to_string(), shown);
        }
        for text in [
            "a/b",
            "a:Q4",
            "./a/b:Q4",
            "a/b:../x.gguf",
            "a/b:",
            "C:\\x\\y.gguf",
            "https://huggingface.co/a/b/blob/main/x.bin",
        ] {
            assert_eq!(HubGguf::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_tag_chooses_one_model() {
        let names = [
            "m-Q4_K_M.gguf",
            "m-Q8_0.gguf",
            "big/m-F16-00001-of-00002.gguf",
            "big/m-F16-00002-of-00002.gguf",
            "config.json",
        ];
        let choose = |which: &str| super::choose(names.into_iter(), which);
        assert_eq!(choose("q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(choose("m-Q8_0.gguf").unwrap(), ["m-Q8_0.gguf"]);
        assert_eq!(choose("F16").unwrap(), ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]);
        assert!(choose("Q5_0").unwrap_err().contains("there are big/m-F16-00001-of-00002.gguf, m-Q4_K_M.gguf"));
        let several = super::choose(["a-Q4_0.gguf", "b-Q4_0.gguf"].into_iter(), "Q4_0").unwrap_err();
        assert!(several.contains("several"), "{several}");
        let cut = super::choose(["m-F16-00001-of-00002.gguf"].into_iter(), "F16").unwrap_err();
        assert!(cut.contains("has no m-F16-00002-of-00002.gguf"), "{cut}");
        assert!(super::choose(["config.json"].into_iter(), "F16").unwrap_err().contains("has no GGUF file"));
    }
}
