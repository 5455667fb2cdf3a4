//! Data sets by their name on a hub: `owner/name`, perhaps with a directory, a revision and a split.

use std::fmt;
use std::path::Path;

use super::{HubModel, RepoKind, is_commit, is_plain, name_of_address};

/// A data set on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataset {
    /// The repository and its revision.
    pub repo: HubModel,
    /// The directory with one of several data sets of the repository.
    pub dir: Option<String>,
    /// The split, where the name gives one.
    pub split: Option<String>,
}

impl HubDataset {
    /// Parses `owner/name`, `owner/name/dir`, each perhaps with `@revision` and then with `:split`, or the address of a data set's page.
    /// Returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let named = name_of_address(text, RepoKind::Dataset);
        let text = named.as_deref().unwrap_or(text);
        // The hub's pages and its file system put this before the name.
        let text = text.strip_prefix("datasets/").filter(|name| name.contains('/')).unwrap_or(text);
        let (rest, split) = match text.rsplit_once(':') {
            Some((rest, split)) => (rest, Some(split.to_owned())),
            None => (text, None),
        };
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, format!("@{revision}")),
            None => (rest, String::new()),
        };
        let mut parts = path.splitn(3, '/');
        let (owner, name, dir) = (parts.next()?, parts.next()?, parts.next().map(str::to_owned));
        let plain = |part: &Option<String>| part.as_deref().is_none_or(is_plain);
        let repo = HubModel::parse(&format!("{owner}/{name}{revision}"))?;
        let repo = HubModel { kind: RepoKind::Dataset, ..repo };
        (plain(&split) && plain(&dir)).then_some(Self { repo, dir, split })
    }

    /// Returns the data set whose cached snapshot is `path`, from a path like `datasets--owner--name/snapshots/COMMIT`, perhaps with a
    /// directory below it and with `:split`.
    pub fn of_snapshot(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (path, split) = match text.rsplit_once(':').filter(|(_, split)| is_plain(split)) {
            Some((path, split)) => (path, Some(split)),
            None => (text, None),
        };
        let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
        let at = parts.iter().rposition(|part| *part == "snapshots")?;
        let (owner, name) = parts[at.checked_sub(1)?].strip_prefix("datasets--")?.split_once("--")?;
        let commit = parts.get(at + 1).filter(|commit| is_commit(commit))?;
        let dir = match &parts[at + 2..] {
            [] => String::new(),
            [dir] => format!("/{dir}"),
            _ => return None,
        };
        let split = split.map_or_else(String::new, |split| format!(":{split}"));
        Self::parse(&format!("{owner}/{name}{dir}@{commit}{split}"))
    }
}

impl fmt::Display for HubDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.repo.to_string();
        let (id, revision) = name.split_once('@').map_or((name.as_str(), None), |(id, revision)| (id, Some(revision)));
        f.write_str(id)?;
        self.dir.iter().try_for_each(|dir| write!(f, "/{dir}"))?;
        revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
        self.split.iter().try_for_each(|split| write!(f, ":{split}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn names_of_data_sets_are_told_from_paths() {
        for good in ["tatsu-lab/alpaca", "openai/gsm8k/main:train", "a/b@v1", "a/b:train_sft", "a/b/c@v1:test"] {
            assert_eq!(HubDataset::parse(good).expect(good).to_string(), good);
        }
        assert_eq!(HubDataset::parse("datasets/a/b:test").expect("a name").to_string(), "a/b:test");
        for bad in ["data", "./data", "../data", "/a/b", "a/b/c/d", "a/", "a/b:", "a/b:x/y", "a/../b", "C:\\data"] {
            assert_eq!(HubDataset::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn places_in_the_cache_name_their_data_set() {
        for (place, name) in [("", ""), ("/main", "/main")] {
            let path = format!("/cache/hub/datasets--openai--gsm8k/snapshots/{COMMIT}{place}");
            let named = HubDataset::of_snapshot(Path::new(&path)).unwrap();
            assert_eq!(named.to_string(), format!("openai/gsm8k{name}@{COMMIT}"));
            let split = HubDataset::of_snapshot(Path::new(&format!("{path}:train"))).unwrap();
            assert_eq!(split.to_string(), format!("openai/gsm8k{name}@{COMMIT}:train"));
        }
        assert_eq!(HubDataset::of_snapshot(Path::new("/data/snapshots/x")), None);
    }
}
