//! Downloads models into the cache that Python's huggingface_hub uses too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use super::settings::HubSettings;
use super::transfer::{Failure, Refusal, Transfer};
use super::{HubModel, RepoKind, conversion, is_license, is_plain, is_plain_path};
use crate::setting::{ADAPTER, MODEL};
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER_MODEL: &str = "tokenizer.model";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Files that are downloaded where the model has them, beside licenses and further chat templates.
const SIDE_FILES: [&str; 10] = [
    "generation_config.json",
    TOKENIZER,
    TOKENIZER_MODEL,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// The directory of named chat templates.
const TEMPLATES: &str = "additional_chat_templates/";
const ATTEMPTS: u32 = 5;
/// Wait before the second attempt; each further attempt waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The part of a model to download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// `config.json` alone.
    Config,
    /// Everything but the weights: enough to read and tokenize data.
    Tokenizer,
    /// The weights too: all that a run needs.
    Everything,
    /// A PEFT adapter, which may lie one folder down.
    Adapter,
}

/// True for a file that comes along with a model or an adapter.
fn is_side_file(name: &str) -> bool {
    let template = name.strip_prefix(TEMPLATES).is_some_and(|rest| !rest.contains('/') && rest.ends_with(".jinja"));
    SIDE_FILES.contains(&name) || template || is_license(name)
}

/// Downloads the files of `model` that the cache lacks, and returns the directory of the model or adapter in the cache. `progress` receives the
/// name of a file, the bytes downloaded so far and the file's size.
///
/// # Errors
/// The model does not exist or is not accessible, a file does not arrive whole, or the disk is full. The next call resumes the
/// download.
pub fn fetch(
    model: &HubModel,
    settings: &HubSettings,
    extent: Extent,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<PathBuf> {
    let cached = || cached_snapshot(model, &settings.cache).and_then(|dir| whole_directory(&dir, extent));
    let download = match find(model, settings, "", cached)? {
        Found::Cached(dir) => return Ok(dir),
        Found::Listed(download) => download,
    };
    match extent {
        Extent::Adapter => download.adapter(&mut progress),
        _ => download.model(extent, &mut progress),
    }
}

/// A repository that was asked for.
pub(super) enum Found<'a> {
    /// The place in the cache of all that was wanted.
    Cached(PathBuf),
    /// The hub's list of its files.
    Listed(Box<Download<'a>>),
}

/// Asks the hub for a repository. `cached` gives the place of all that is wanted, if the cache has it: it serves where the hub may not or
/// cannot be asked, and for a commit, which never changes. `part` is for messages: nothing, or a part of the repository and a space.
///
/// # Errors
/// The repository does not exist or is not accessible, or the hub may not be asked.
pub(super) fn find<'a>(
    model: &'a HubModel,
    settings: &'a HubSettings,
    part: &str,
    cached: impl Fn() -> Option<PathBuf>,
) -> Result<Found<'a>> {
    if let Some(variable) = settings.offline {
        let problem = format!("{part}is not in the cache, and {variable} forbids to fetch it");
        return cached().map(Found::Cached).ok_or_else(|| error(model, problem));
    }
    if model.is_commit()
        && let Some(place) = cached()
    {
        return Ok(Found::Cached(place));
    }
    let transfer = Transfer::new(settings)?;
    let asked = format!("{}/api/{}", settings.endpoint, repo(model).api_url());
    let info: RepoInfo = match patiently(settings, |_| transfer.json(&asked)) {
        Ok(info) => info,
        Err(e) => match cached() {
            Some(place) if e.may_pass() => return Ok(Found::Cached(place)),
            _ => return Err(refusal(model, settings, &e)),
        },
    };
    if !is_plain(&info.sha) {
        return Err(error(model, format!("{} answers with the commit `{}`", settings.endpoint, info.sha)));
    }
    let cache = settings.cache.repo(repo(model));
    Ok(Found::Listed(Box::new(Download { model, settings, transfer, cache, info })))
}

pub(super) fn error(model: &HubModel, problem: impl std::fmt::Display) -> Error {
    Error::Hub { model: model.to_string(), problem: problem.to_string() }
}

pub(super) fn repo(model: &HubModel) -> Repo {
    let kind = match model.kind {
        RepoKind::Model => RepoType::Model,
        RepoKind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(model.id.clone(), kind, model.revision.clone())
}

/// The path of a repository on its hub.
fn place(model: &HubModel) -> String {
    match model.kind {
        RepoKind::Model => model.id.clone(),
        RepoKind::Dataset => format!("datasets/{}", model.id),
    }
}

/// The directory of the revision in the cache.
pub(super) fn cached_snapshot(model: &HubModel, cache: &Cache) -> Option<PathBuf> {
    let commit = match model.is_commit() {
        true => model.revision.clone(),
        false => {
            let refs = cache.path().join(repo(model).folder_name()).join("refs");
            fs::read_to_string(refs.join(&model.revision)).ok()?.trim().to_owned()
        }
    };
    is_plain(&commit).then(|| cache.repo(repo(model)).pointer_path(&commit))
}

/// The directory of the model or adapter in a snapshot of the cache, if all of its files are there.
fn whole_directory(snapshot: &Path, extent: Extent) -> Option<PathBuf> {
    if extent != Extent::Adapter {
        return is_whole(snapshot, extent).then(|| snapshot.to_owned());
    }
    let below = fs::read_dir(snapshot).ok()?.flatten().map(|entry| entry.path());
    let mut places = std::iter::once(snapshot.to_owned()).chain(below);
    places.find(|dir| [ADAPTER_CONFIG, ADAPTER_WEIGHTS].iter().all(|name| dir.join(name).exists()))
}

fn is_whole(dir: &Path, extent: Extent) -> bool {
    let there = |name: &str| dir.join(name).exists();
    let weights = || match shards(&dir.join(INDEX)) {
        Ok(shards) => shards.iter().all(|shard| there(shard)),
        Err(_) => there(SINGLE),
    };
    match extent {
        Extent::Config => there(CONFIG),
        Extent::Tokenizer => there(CONFIG) && (there(TOKENIZER) || there(TOKENIZER_MODEL)),
        Extent::Everything => there(CONFIG) && weights(),
        Extent::Adapter => there(ADAPTER_CONFIG) && there(ADAPTER_WEIGHTS),
    }
}

/// The shard files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read(index).map_err(|e| Error::file(index, format!("cannot be read: {e}")))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| Error::file(index, format!("is not JSON: {e}")))?;
    let map = value["weight_map"].as_object();
    let map = map.ok_or_else(|| Error::field(index, "weight_map", "is missing; it names the file of each tensor"))?;
    let name = |file: &Value| file.as_str().filter(|name| is_plain(name)).map(str::to_owned);
    let names = map.values().map(name).collect::<Option<_>>();
    names.ok_or_else(|| Error::field(index, "weight_map", "names something that is no file of the directory"))
}

pub(super) struct Download<'a> {
    pub(super) model: &'a HubModel,
    pub(super) settings: &'a HubSettings,
    pub(super) transfer: Transfer,
    pub(super) cache: CacheRepo,
    pub(super) info: RepoInfo,
}

impl Download<'_> {
    fn has(&self, name: &str) -> bool {
        self.info.siblings.iter().any(|file| file.rfilename == name)
    }

    fn missing(&self, name: &str) -> Error {
        error(self.model, format!("has no {name}"))
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.cache.pointer_path(&self.info.sha)
    }

    /// Downloads the files that come along with the model or adapter in `folder`, which is empty or ends in a slash.
    fn side_files(&self, folder: &str, progress: &mut impl FnMut(&str, u64, u64)) -> Result<()> {
        let names = self.info.siblings.iter().map(|file| file.rfilename.as_str());
        let side = |name: &&str| name.strip_prefix(folder).is_some_and(is_side_file) && is_plain_path(name);
        names.filter(side).try_for_each(|name| self.file(name, progress))
    }

    fn model(&self, extent: Extent, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf> {
        if !self.has(CONFIG) {
            return Err(self.not_a_model());
        }
        self.file(CONFIG, progress)?;
        let dir = self.snapshot();
        if extent == Extent::Config {
            return Ok(dir);
        }
        // Fails before gigabytes are downloaded.
        if extent == Extent::Everything && !self.has(SINGLE) && !self.has(INDEX) {
            let problem = match self.info.siblings.iter().any(|file| file.rfilename.ends_with(".bin")) {
                true => format!("has no safetensors, but pickled weights: {}", conversion(&self.model.id, "converted")),
                false => "has no safetensors; choose a model that has".to_owned(),
            };
            return Err(error(self.model, problem));
        }
        self.side_files("", progress)?;
        if extent == Extent::Tokenizer {
            return Ok(dir);
        }
        if self.has(SINGLE) {
            self.file(SINGLE, progress)?;
            return Ok(dir);
        }
        self.file(INDEX, progress)?;
        for shard in shards(&dir.join(INDEX))? {
            if !self.has(&shard) {
                return Err(self.missing(&shard));
            }
            self.file(&shard, progress)?;
        }
        Ok(dir)
    }

    /// The error for a repository without a configuration, by what it holds instead.
    fn not_a_model(&self) -> Error {
        let problem = if self.has(ADAPTER_CONFIG) {
            format!(
                "is a PEFT adapter, not a model: give its base as {MODEL}, and it as {}",
                ADAPTER.is(&self.model.id)
            )
        } else {
            let names = self.info.siblings.iter().map(|file| file.rfilename.as_str());
            // The first part of a split model comes before the others.
            match names.filter(|name| name.ends_with(".gguf")).min() {
                Some(file) => format!("has GGUF files alone: name one of them, such as {}:{file}", self.model),
                None => return self.missing(CONFIG),
            }
        };
        error(self.model, problem)
    }

    /// Downloads the adapter at the top, or else the only one in a folder.
    fn adapter(&self, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf> {
        let names = self.info.siblings.iter().map(|file| file.rfilename.as_str());
        let folder = |name: &'_ str| name.strip_suffix(ADAPTER_CONFIG).map(str::to_owned);
        let of_adapter = |folder: &String| {
            folder.is_empty() || (folder.ends_with('/') && is_plain_path(folder.trim_end_matches('/')))
        };
        let folders: Vec<String> = names.filter_map(folder).filter(of_adapter).collect();
        let folder = match &folders[..] {
            _ if folders.iter().any(String::is_empty) => "",
            [folder] => folder,
            [] if self.has(CONFIG) => {
                let problem = format!("holds no {ADAPTER_CONFIG}: it is a model, not an adapter; give it as {MODEL}");
                return Err(error(self.model, problem));
            }
            [] => return Err(error(self.model, format!("holds no {ADAPTER_CONFIG}; it is not a PEFT adapter"))),
            several => {
                let problem = format!(
                    "holds several adapters ({}); download the one you mean and give its directory",
                    several.join(", ")
                );
                return Err(error(self.model, problem));
            }
        };
        let weights = format!("{folder}{ADAPTER_WEIGHTS}");
        if !self.has(&weights) {
            return Err(match self.has(&format!("{folder}adapter_model.bin")) {
                true => error(
                    self.model,
                    "holds adapter_model.bin, a pickle, which is not read; download it and convert it to safetensors",
                ),
                false => self.missing(&weights),
            });
        }
        self.file(&format!("{folder}{ADAPTER_CONFIG}"), progress)?;
        self.side_files(folder, progress)?;
        self.file(&weights, progress)?;
        Ok(self.snapshot().join(folder.trim_end_matches('/')))
    }

    /// Downloads one file and resumes an earlier, incomplete download of it.
    pub(super) fn file(&self, name: &str, progress: &mut impl FnMut(&str, u64, u64)) -> Result<()> {
        let pointer = self.cache.pointer_path(&self.info.sha).join(name);
        if pointer.exists() {
            return Ok(());
        }
        let fail = |problem: String| error(self.model, format!("{name}: {problem}"));
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/{}/resolve/{}/{name}", place(self.model), self.info.sha);
        let failed = |e: Failure, advice: &str| match e {
            Failure::Refused(Refusal { status: 401 | 403, .. }) => refusal(self.model, self.settings, &e),
            _ => fail(format!("{e}{advice}")),
        };
        let found = patiently(self.settings, |_| self.transfer.find(&url)).map_err(|e| failed(e, ""))?;
        // Both become file names.
        if !is_plain(&found.etag) || found.commit != self.info.sha {
            return Err(fail(format!("changed on {endpoint} meanwhile; run the command again")));
        }
        let blob = self.cache.blob_path(&found.etag);
        let part = blob.with_extension("part");
        let made = |path: &Path| path.parent().map_or(Ok(()), fs::create_dir_all);
        made(&blob).and_then(|()| made(&pointer)).map_err(|e| Error::file(&blob, e))?;
        // Another process may be fetching the same file.
        let lock = File::create(blob.with_extension("lock")).and_then(|lock| lock.lock().map(|()| lock));
        let _lock = lock.map_err(|e| Error::file(&blob, format!("cannot be locked: {e}")))?;
        let mut damage = None;
        if !blob.exists() {
            for _ in 0..2 {
                let filled = patiently(self.settings, |alive| {
                    self.transfer.fill(&found, &part, alive, |done| progress(name, done, found.size))
                });
                filled.map_err(|e| failed(e, "; run the command again to go on"))?;
                damage = whole(&part, found.size, &found.etag).map_err(|e| Error::file(&part, e))?;
                if damage.is_none() {
                    break;
                }
                fs::remove_file(&part).map_err(|e| Error::file(&part, e))?;
            }
        }
        if let Some(damage) = damage {
            return Err(fail(format!("arrives damaged: {damage}")));
        }
        if !blob.exists() {
            fs::rename(&part, &blob).map_err(|e| Error::file(&blob, e))?;
        }
        link(&blob, &pointer, name.matches('/').count()).map_err(|e| Error::file(&pointer, e))?;
        self.cache.create_ref(&self.info.sha).map_err(|e| Error::file(&pointer, e))
    }
}

/// Checks a downloaded file and returns the problem, if any. The ETag of a large file is the SHA-256 of its content.
fn whole(blob: &Path, size: u64, etag: &str) -> io::Result<Option<String>> {
    let length = fs::metadata(blob)?.len();
    if length != size {
        return Ok(Some(format!("{length} bytes instead of {size}")));
    }
    if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    let mut file = File::open(blob)?;
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => hash.update(&piece[..read]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((!found.eq_ignore_ascii_case(etag)).then(|| format!("its SHA-256 is {found} instead of {etag}")))
}

/// Links `pointer` to `blob` as huggingface_hub does: by a relative symbolic link, or by moving the file where links are not
/// allowed. The pointer lies `depth` folders below its snapshot.
fn link(blob: &Path, pointer: &Path, depth: usize) -> io::Result<()> {
    if pointer.exists() {
        return Ok(());
    }
    let name = blob.file_name().unwrap_or_default();
    // snapshots/COMMIT/FILE to blobs/ETAG
    let target = Path::new(&"../".repeat(depth)).join("../../blobs").join(name);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, pointer);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, pointer);
    #[cfg(not(any(unix, windows)))]
    let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
    linked.or_else(|_| fs::rename(blob, pointer))
}

/// Retries errors that may be temporary, until the patience of the settings has passed without progress, also where the server names a
/// later time. The attempt may set the time of the last progress.
pub(super) fn patiently<T>(
    settings: &HubSettings,
    mut attempt: impl FnMut(&mut Instant) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (mut pause, mut alive) = (FIRST_PAUSE, Instant::now());
    for _ in 1..ATTEMPTS {
        match attempt(&mut alive) {
            Err(e) if e.may_pass() && alive.elapsed() + pause.max(e.wait()) < settings.patience() => {
                std::thread::sleep(pause.max(e.wait()));
            }
            other => return other,
        }
        pause *= 2;
    }
    attempt(&mut alive)
}

pub(super) fn refusal(model: &HubModel, settings: &HubSettings, e: &Failure) -> Error {
    let endpoint = &settings.endpoint;
    let page = format!("{endpoint}/{}", place(model));
    let away = || {
        format!(
            "is no directory here, and {endpoint} cannot be asked for it: {e}; without a network, give a model directory or a model \
             that is in the cache"
        )
    };
    let problem = match e {
        Failure::Refused(refused) => {
            let gated =
                refused.code.as_deref() == Some("GatedRepo") || (refused.status == 403 && refused.code.is_none());
            let problem = match (gated, refused.status, &settings.token) {
                (true, _, None) => format!(
                    "is gated: accept its terms at {page}, then give a token of the same account: set HF_TOKEN, or run `hf auth login`"
                ),
                (true, _, Some(token)) => format!(
                    "is gated, and the token in use (of {}) has no access yet: accept its terms at {page} with the token's account, \
                     or set HF_TOKEN to a token of an account that has access",
                    token.source
                ),
                (_, 401 | 403, None) => {
                    format!("is not open on {endpoint}, or not there: set HF_TOKEN where it is private or gated")
                }
                (_, 401 | 403, Some(token)) => {
                    format!(
                        "is not open on {endpoint}, or not there: the token in use does not open it (of {})",
                        token.source
                    )
                }
                (_, 404, _) => {
                    let noun = if model.kind == RepoKind::Model { "model" } else { "data set" };
                    format!("is no directory here, and no {noun} or revision on {endpoint}")
                }
                _ => away(),
            };
            match &refused.words {
                Some(words) if matches!(refused.status, 401 | 403) => format!("{problem} (the hub says: {words})"),
                _ => problem,
            }
        }
        _ => away(),
    };
    error(model, problem)
}
