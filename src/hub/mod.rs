//! Models and data sets by their name on a hub: `owner/name`, with `@revision` where it is not `main`.

pub mod dataset;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod fetch;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod fetch_dataset;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod fetch_gguf;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
pub mod settings;
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
mod transfer;

use std::fmt;
use std::path::Path;

/// The revision of a name that gives none.
const MAIN: &str = "main";

/// Kinds of repositories on a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// Weights and configuration.
    Model,
    /// Data files.
    Dataset,
}

/// A model on a hub: its name and one revision of it. Also the repository of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `owner/name`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The kind of content of the repository.
    pub kind: RepoKind,
}

impl HubModel {
    /// Parses `owner/name` or `owner/name@revision`, or the address of a model's page. Returns `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let named = name_of_address(text, RepoKind::Model);
        let text = named.as_deref().unwrap_or(text);
        let (id, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (owner, name) = id.split_once('/')?;
        let plain = |part: &str| is_plain(part) && !part.contains("--");
        (plain(owner) && plain(name) && is_plain(revision)).then(|| Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
            kind: RepoKind::Model,
        })
    }

    /// Returns the model whose cached snapshot is `dir`, from a path like `models--owner--name/snapshots/COMMIT`.
    pub fn of_snapshot(dir: &Path) -> Option<Self> {
        let mut parts = dir.iter().rev().map(|part| part.to_str());
        let commit = parts.next()??;
        if parts.next()?? != "snapshots" || !is_commit(commit) {
            return None;
        }
        let (owner, name) = parts.next()??.strip_prefix("models--")?.split_once("--")?;
        Self::parse(&format!("{owner}/{name}@{commit}"))
    }

    /// True if the revision is a full commit hash, whose files never change.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            MAIN => write!(f, "{}", self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// The name `owner/name` or `owner/name@revision` in the address of a page of the hub, such as `https://huggingface.co/owner/name/tree/v1`. A
/// directory of a data set follows its name. `None` for other texts, addresses of single files, and repositories of another kind.
pub(crate) fn name_of_address(text: &str, kind: RepoKind) -> Option<String> {
    const HOSTS: [&str; 3] = ["huggingface.co/", "www.huggingface.co/", "hf.co/"];
    let path = text.strip_prefix("hf://").or_else(|| {
        let rest = ["https://", "http://"].iter().find_map(|start| text.strip_prefix(start)).unwrap_or(text);
        HOSTS.iter().find_map(|host| rest.strip_prefix(host))
    })?;
    let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let path = match (path.strip_prefix("datasets/"), kind) {
        (Some(path), RepoKind::Dataset) => path,
        (None, RepoKind::Model) => path.strip_prefix("models/").unwrap_or(path),
        _ => return None,
    };
    let parts: Vec<&str> = path.split('/').collect();
    match parts[..] {
        [owner, name] | [owner, name, "viewer", ..] => Some(format!("{owner}/{name}")),
        [owner, name, "tree", revision] => Some(format!("{owner}/{name}@{revision}")),
        [owner, name, "tree", revision, dir] if kind == RepoKind::Dataset && dir != "data" => {
            Some(format!("{owner}/{name}/{dir}@{revision}"))
        }
        [owner, name, "tree", revision, ..] => Some(format!("{owner}/{name}@{revision}")),
        _ => None,
    }
}

/// Returns the repository whose cached snapshot holds the GGUF file `path`, and the file's path in it.
fn gguf_of_snapshot(path: &Path) -> Option<(HubModel, String)> {
    path.extension().filter(|extension| extension.eq_ignore_ascii_case("gguf"))?;
    let (repo, dir) = path.ancestors().skip(1).find_map(|dir| Some((HubModel::of_snapshot(dir)?, dir)))?;
    let parts: Option<Vec<&str>> = path.strip_prefix(dir).ok()?.iter().map(|part| part.to_str()).collect();
    Some((repo, parts?.join("/")))
}

/// Returns the name by which any machine gets what lies at `path` in the cache of a hub: `owner/name@COMMIT`, and for a GGUF file
/// `owner/name@COMMIT:FILE.gguf`. Returns `None` for other paths.
pub fn name_of_cached(path: &Path) -> Option<String> {
    let of_file = || gguf_of_snapshot(path).map(|(repo, file)| format!("{repo}:{file}"));
    HubModel::of_snapshot(path).map(|repo| repo.to_string()).or_else(of_file)
}

/// Returns the name of the model at `path` for the files of a run: the hub's name without a revision, or the path.
pub fn base_name(path: &Path) -> String {
    let of_file = || gguf_of_snapshot(path).map(|(repo, _)| repo);
    HubModel::of_snapshot(path).or_else(of_file).map_or_else(|| path.display().to_string(), |model| model.id)
}

/// True for the name of a file with the terms under which a model is given: `LICENSE`, `NOTICE.txt`, `USE_POLICY.md` and the like.
pub fn is_license(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let kind = stem.split(['-', '_']).next().unwrap_or_default();
    !name.contains('/') && (matches!(kind, "LICENSE" | "LICENCE" | "NOTICE" | "COPYING") || stem == "USE_POLICY")
}

/// The command that writes the model `from` (a directory or a name of the hub) with safetensors and a tokenizer.json into `to`.
pub fn conversion(from: &str, to: &str) -> String {
    let [from, to] = [from, to].map(python_text);
    format!(
        "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = {from}, {to}; \
         M.from_pretrained(a, torch_dtype='auto').save_pretrained(b); T.from_pretrained(a).save_pretrained(b)\""
    )
}

/// The text in quotes for Python in a shell's double quotes, or a placeholder for a text that would need more than quotes.
pub fn python_text(text: &str) -> String {
    let plain = !text.contains(['\'', '"', '\\', '$', '`', '!']) && !text.chars().any(char::is_control);
    format!("'{}'", if plain { text } else { "DIR" })
}

/// Checks that `name` is a single path component that cannot leave its directory.
fn is_plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !part.is_empty() && part.len() <= 128 && !part.starts_with('.') && part.chars().all(allowed)
}

/// As [`is_plain`], of a path of such components.
#[cfg(all(feature = "cli", not(target_arch = "wasm32")))]
fn is_plain_path(path: &str) -> bool {
    path.split('/').all(is_plain)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_pages_are_names() {
        for (address, name) in [
            ("https://huggingface.co/owner/name", "owner/name"),
            ("https://huggingface.co/owner/name/", "owner/name"),
            ("https://huggingface.co/owner/name?library=transformers", "owner/name"),
            ("https://huggingface.co/owner/name/tree/v1", "owner/name@v1"),
            ("hf.co/owner/name", "owner/name"),
            ("hf://owner/name", "owner/name"),
        ] {
            assert_eq!(HubModel::parse(address).expect(address).to_string(), name);
        }
        for (address, name) in [
            ("https://huggingface.co/datasets/owner/name", "owner/name"),
            ("https://huggingface.co/datasets/owner/name/viewer/default/train", "owner/name"),
            ("https://huggingface.co/datasets/owner/name/tree/main/main", "owner/name/main"),
            ("hf://datasets/owner/name:test", "owner/name:test"),
        ] {
            assert_eq!(dataset::HubDataset::parse(address).expect(address).to_string(), name);
        }
        let model = "https://huggingface.co/owner/name/resolve/main/model.safetensors";
        for other in [
            model,
            "https://example.com/owner/name",
            "https://huggingface.co/datasets/owner/name",
            "https://huggingface.co/owner",
        ] {
            assert_eq!(HubModel::parse(other), None, "{other}");
        }
        assert_eq!(dataset::HubDataset::parse("https://huggingface.co/owner/name"), None);
    }

    #[test]
    fn names_of_models_are_told_from_paths() {
        for good in
            ["HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B@v1.0", "a/b@0123456789abcdef0123456789abcdef01234567"]
        {
            assert_eq!(HubModel::parse(good).expect(good).to_string(), good);
        }
        for bad in
            ["model", "./model", "../model", "/a/b", "a/b/c", "a/", "/b", "a/..", "a b/c", "a/b@../c", "a/b@", "a--b/c"]
        {
            assert_eq!(HubModel::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn licenses_are_known_by_their_names() {
        for name in [
            "LICENSE",
            "LICENSE.txt",
            "license.md",
            "LICENCE",
            "NOTICE",
            "Notice.txt",
            "COPYING",
            "USE_POLICY.md",
            "LICENSE-MIT",
        ] {
            assert!(is_license(name), "{name}");
        }
        for name in ["README.md", "licensed.json", "original/LICENSE", "config.json"] {
            assert!(!is_license(name), "{name}");
        }
    }

    #[test]
    fn commands_quote_plain_names_alone() {
        assert!(conversion("models/a b", "out").contains("a, b = 'models/a b', 'out';"));
        assert_eq!(python_text("it's"), "'DIR'");
    }

    #[test]
    fn a_snapshot_of_the_cache_knows_its_model() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let dir = format!("/cache/hub/models--owner--name/snapshots/{commit}");
        assert_eq!(HubModel::of_snapshot(Path::new(&dir)).unwrap().to_string(), format!("owner/name@{commit}"));
        assert_eq!(base_name(Path::new(&dir)), "owner/name");
        assert_eq!(name_of_cached(Path::new(&dir)), Some(format!("owner/name@{commit}")));
        let file = format!("{dir}/sub/x.gguf");
        assert_eq!(base_name(Path::new(&file)), "owner/name");
        assert_eq!(name_of_cached(Path::new(&file)), Some(format!("owner/name@{commit}:sub/x.gguf")));
        assert_eq!(name_of_cached(Path::new("models/x.gguf")), None);
        assert_eq!(base_name(Path::new("models/mine")), "models/mine");
        assert_eq!(HubModel::of_snapshot(Path::new("/cache/models--owner--name/snapshots/main")), None);
    }
}
