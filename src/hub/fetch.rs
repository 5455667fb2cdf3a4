//! Downloads models into the cache that Python's huggingface_hub uses too.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::transfer::{Failure, Transfer};
use super::{HubModel, is_plain};
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const INDEX: &str = "model.safetensors.index.json";
/// Files that are downloaded where the model has them.
const SIDE_FILES: [&str; 6] = [
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];
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
}

/// The hub to download from and the cache to download to.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Access token for private and gated models. Only the hub itself receives it.
    pub token: Option<String>,
    /// Use the cache alone and make no request.
    pub offline: bool,
    /// Directory that downloads are kept in, laid out as huggingface_hub lays it out.
    pub cache: Cache,
}

impl HubSettings {
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HUB_CACHE` and `HF_HOME`, as huggingface_hub reads them.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let cache = set("HF_HUB_CACHE").map_or_else(Cache::from_env, |path| Cache::new(path.into()));
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Self {
            endpoint: set("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            token: set("HF_TOKEN").or_else(|| cache.token()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
            cache,
        }
    }
}

/// Downloads the files of `model` that the cache lacks, and returns the model's directory in the cache. `progress` receives the
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
    let cached = cached(model, &settings.cache).filter(|dir| is_whole(dir, extent));
    if settings.offline || model.is_commit() {
        match cached {
            Some(dir) => return Ok(dir),
            None if settings.offline => {
                return Err(error(model, "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"));
            }
            None => {}
        }
    }
    let transfer = Transfer::new(&settings.endpoint, settings.token.as_deref());
    let asked = format!("{}/api/{}", settings.endpoint, repo(model).api_url());
    let info: RepoInfo = match patiently(|| transfer.json(&asked)) {
        Ok(info) => info,
        Err(e) => match cached {
            Some(dir) if e.may_pass() => return Ok(dir),
            _ => return Err(refusal(model, settings, &e)),
        },
    };
    if !is_plain(&info.sha) {
        return Err(error(model, format!("{} answers with the commit `{}`", settings.endpoint, info.sha)));
    }
    let cache = settings.cache.repo(repo(model));
    let download = Download { model, settings, transfer, cache, info };
    download.all(extent, &mut progress)
}

fn error(model: &HubModel, problem: impl std::fmt::Display) -> Error {
    Error::Hub { model: model.to_string(), problem: problem.to_string() }
}

fn repo(model: &HubModel) -> Repo {
    Repo::with_revision(model.id.clone(), RepoType::Model, model.revision.clone())
}

/// The directory of the revision in the cache.
fn cached(model: &HubModel, cache: &Cache) -> Option<PathBuf> {
    let commit = match model.is_commit() {
        true => model.revision.clone(),
        false => {
            let refs = cache.path().join(repo(model).folder_name()).join("refs");
            fs::read_to_string(refs.join(&model.revision)).ok()?.trim().to_owned()
        }
    };
    is_plain(&commit).then(|| cache.repo(repo(model)).pointer_path(&commit))
}

fn is_whole(dir: &Path, extent: Extent) -> bool {
    let there = |name: &str| dir.join(name).exists();
    let weights = || match shards(&dir.join(INDEX)) {
        Ok(shards) => shards.iter().all(|shard| there(shard)),
        Err(_) => there(SINGLE),
    };
    match extent {
        Extent::Config => there(CONFIG),
        Extent::Tokenizer => there(CONFIG) && there(TOKENIZER),
        Extent::Everything => there(CONFIG) && weights(),
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

struct Download<'a> {
    model: &'a HubModel,
    settings: &'a HubSettings,
    transfer: Transfer,
    cache: CacheRepo,
    info: RepoInfo,
}

impl Download<'_> {
    fn all(&self, extent: Extent, progress: &mut impl FnMut(&str, u64, u64)) -> Result<PathBuf> {
        let has = |name: &str| self.info.siblings.iter().any(|file| file.rfilename == name);
        let missing = |name: &str| error(self.model, format!("has no {name}"));
        if !has(CONFIG) {
            return Err(missing(CONFIG));
        }
        self.file(CONFIG, progress)?;
        let dir = self.cache.pointer_path(&self.info.sha);
        if extent == Extent::Config {
            return Ok(dir);
        }
        // Fails before gigabytes are downloaded.
        if extent == Extent::Everything && !has(SINGLE) && !has(INDEX) {
            return Err(error(self.model, "has no safetensors; choose a model that has, or convert it"));
        }
        for name in SIDE_FILES.into_iter().filter(|name| has(name)) {
            self.file(name, progress)?;
        }
        if extent == Extent::Tokenizer {
            return Ok(dir);
        }
        if has(SINGLE) {
            self.file(SINGLE, progress)?;
            return Ok(dir);
        }
        self.file(INDEX, progress)?;
        for shard in shards(&dir.join(INDEX))? {
            if !has(&shard) {
                return Err(missing(&shard));
            }
            self.file(&shard, progress)?;
        }
        Ok(dir)
    }

    /// Downloads one file and resumes an earlier, incomplete download of it.
    fn file(&self, name: &str, progress: &mut impl FnMut(&str, u64, u64)) -> Result<()> {
        let pointer = self.cache.pointer_path(&self.info.sha).join(name);
        if pointer.exists() {
            return Ok(());
        }
        let fail = |problem: String| error(self.model, format!("{name}: {problem}"));
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/{}/resolve/{}/{name}", self.model.id, self.info.sha);
        let found = patiently(|| self.transfer.find(&url)).map_err(|e| fail(e.to_string()))?;
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
                let filled = patiently(|| self.transfer.fill(&found, &part, |done| progress(name, done, found.size)));
                filled.map_err(|e| fail(format!("{e}; run the command again to go on")))?;
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
        link(&blob, &pointer).map_err(|e| Error::file(&pointer, e))?;
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
/// allowed.
fn link(blob: &Path, pointer: &Path) -> io::Result<()> {
    if pointer.exists() {
        return Ok(());
    }
    let name = blob.file_name().unwrap_or_default();
    // snapshots/COMMIT/FILE to blobs/ETAG
    let target = Path::new("../../blobs").join(name);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(target, pointer);
    #[cfg(windows)]
    let linked = std::os::windows::fs::symlink_file(target, pointer);
    #[cfg(not(any(unix, windows)))]
    let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
    linked.or_else(|_| fs::rename(blob, pointer))
}

/// Retries errors that may be temporary.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(e) if e.may_pass() => std::thread::sleep(pause),
            other => return other,
        }
        pause *= 2;
    }
    attempt()
}

fn refusal(model: &HubModel, settings: &HubSettings, e: &Failure) -> Error {
    let endpoint = &settings.endpoint;
    let token = match settings.token {
        Some(_) => "the token in use does not open it",
        None => "set HF_TOKEN where it is private or gated",
    };
    let problem = match e {
        Failure::Status(401) => format!("is not open on {endpoint}, or not there: {token}"),
        Failure::Status(403) => format!("is gated: accept its terms at {endpoint}/{}; {token}", model.id),
        Failure::Status(404) => format!("is no directory here, and no model or revision on {endpoint}"),
        _ => format!(
            "is no directory here, and {endpoint} cannot be asked for it: {e}; without a network, give a model directory or a model that is in the cache"
        ),
    };
    error(model, problem)
}
