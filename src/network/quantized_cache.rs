//! A copy of a model's 4-bit weights as the device made them, so that the next start neither reads nor quantizes the original.
//!
//! One file: the identity (a line of JSON), the bytes of every buffer in order, then a CRC-32C of each. A copy that is damaged, or not
//! of these files, is ignored and written anew. Where none can be written, the run goes on without. A file's time of change is that of
//! its last use. Where all copies together are too large, those that were unused for longest are removed first.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::Result;
use crate::files::{self, File, Fingerprint};
use crate::gpu::{Buffers, Gpu, View};
use crate::model::source::{CacheSettings, Source};
use crate::model::tensors::EMBEDDING;
use crate::ops::weight::Weight;
use crate::quant::format::{Format4, Storage};

/// Version of the copies' contents. It rises whenever the same files would give other bytes.
const VERSION: u32 = 2;
/// Bytes on their way between disk and device.
const PIECE_BYTES: u64 = 16 << 20;
const EXTENSION: &str = "4bit";
/// A file that is being written changes all the time. One that has not changed for so long was left by a process that
/// was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(60 * 60);
/// Longest first line that is read as an identity.
const MAX_IDENTITY_BYTES: u64 = 16 << 20;

/// A copy as it lies in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedCopy {
    /// The copy's file.
    pub path: PathBuf,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Time since its last use.
    pub unused_for: Duration,
    /// The model that it is a copy of; `None` where the file does not say.
    pub source: Option<CopySource>,
}

/// The source of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// The model's directory.
    pub model: PathBuf,
    /// 4-bit code of the copy, with or without double quantization.
    pub format: Format4,
    /// True if the copy includes embedding and head.
    pub embedding: bool,
}

/// The copies in `dir`, those unused the longest first; none where there is no such directory.
pub fn copies(dir: &Path) -> Vec<CachedCopy> {
    let mut found: Vec<CachedCopy> = files_in(dir, is_copy)
        .map(|(path, bytes, unused_for)| CachedCopy { source: source(&path), path, bytes, unused_for })
        .collect();
    found.sort_by(|a, b| b.unused_for.cmp(&a.unused_for).then_with(|| a.path.cmp(&b.path)));
    found
}

/// Lists incomplete copies of killed processes in `dir`, with their bytes.
pub fn abandoned(dir: &Path) -> Vec<(PathBuf, u64)> {
    let old = files_in(dir, is_part).filter(|(.., age)| *age >= ABANDONED_AFTER);
    old.map(|(path, bytes, _)| (path, bytes)).collect()
}

/// Path, bytes and age of the files of a directory whose names are of one kind.
fn files_in(dir: &Path, kind: fn(&str) -> bool) -> impl Iterator<Item = (PathBuf, u64, Duration)> {
    let paths = files::names(dir).unwrap_or_default().into_iter().filter(move |name| kind(name)).map(|n| dir.join(n));
    // A file that another process removes meanwhile is none.
    let found: Vec<_> =
        paths.filter_map(|path| Some((files::len(&path).ok()?, files::age(&path).ok()?, path))).collect();
    found.into_iter().map(|(bytes, age, path)| (path, bytes, age))
}

/// The rest of a name that begins with a copy's key.
fn after_key(name: &str) -> Option<&str> {
    let key = name.get(..16)?;
    key.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(&name[16..])
}

fn is_copy(name: &str) -> bool {
    after_key(name).and_then(|rest| rest.strip_prefix('.')) == Some(EXTENSION)
}

fn is_part(name: &str) -> bool {
    after_key(name).is_some_and(|rest| rest.ends_with(".part"))
}

/// Parses the identity line of a copy.
fn source(path: &Path) -> Option<CopySource> {
    let mut line = String::new();
    BufReader::new(File::open(path).ok()?.take(MAX_IDENTITY_BYTES)).read_line(&mut line).ok()?;
    let identity: serde_json::Value = serde_json::from_str(&line).ok()?;
    let Ok(Storage::Quantized(format)) = identity["storage"].as_str()?.parse() else { return None };
    Some(CopySource {
        model: Path::new(identity["files"][0][0].as_str()?).parent()?.to_owned(),
        format,
        embedding: identity["tensors"].as_array()?.iter().any(|name| name == EMBEDDING),
    })
}

/// Removes abandoned files, then the copies that were unused for longest, until `incoming` more bytes are within the
/// limit. `own` stays.
fn make_room(settings: &CacheSettings, own: &Path, incoming: u64) {
    for (path, _) in abandoned(&settings.dir) {
        let _ = files::remove_file(&path);
    }
    let others: Vec<CachedCopy> = copies(&settings.dir).into_iter().filter(|copy| copy.path != own).collect();
    let mut total = incoming + others.iter().map(|copy| copy.bytes).sum::<u64>();
    for copy in others {
        if total <= settings.max_bytes {
            break;
        }
        // Another process may be reading it: a file that can be removed all the same stays readable to who has it open.
        if files::remove_file(&copy.path).is_ok() {
            total -= copy.bytes;
        }
    }
}

/// The place of one model's copy.
pub(super) struct QuantizedCache {
    settings: CacheSettings,
    path: PathBuf,
    identity: Vec<u8>,
    views: Vec<View>,
}

impl QuantizedCache {
    /// The copy of these weights; `None` where no copies are kept, or not of weights as small as these. `weights` are
    /// those that the device quantizes, with their names.
    pub(super) fn of(source: &Source, weights: &[(String, &Weight)]) -> Option<Self> {
        let settings = source.cache.as_ref()?;
        let sources = weights.iter().map(|(name, _)| source.tensors.get(name)).collect::<Option<Vec<_>>>()?;
        if weights.is_empty() || sources.iter().map(|info| info.byte_len).sum::<u64>() < settings.min_bytes {
            return None;
        }
        let mut paths: Vec<&Path> = sources.iter().map(|info| info.path.as_path()).collect();
        paths.sort_unstable();
        paths.dedup();
        let describe = |path: &&Path| -> io::Result<serde_json::Value> {
            let place = files::canonicalize(path)?;
            Ok(json!([place.to_string_lossy(), files::len(path)?, files::modified(path)?.to_string()]))
        };
        let of_files = paths.iter().map(describe).collect::<io::Result<Vec<_>>>().ok()?;
        let panels = || weights.iter().flat_map(|(_, weight)| &weight.panels);
        let views: Vec<View> = panels().flat_map(|p| [Some(p.data), p.absmax, p.nested]).flatten().collect();
        let names: Vec<&str> = weights.iter().map(|(name, _)| name.as_str()).collect();
        let storage = weights[0].1.storage.name();
        let identity = json!({
            "version": VERSION,
            "files": of_files,
            "storage": storage,
            "tensors": names,
            "bytes": views.iter().map(|view| view.bytes).collect::<Vec<_>>(),
        });
        // The file's name tells models and storages apart; the identity inside says whether it is still theirs.
        let key = format!("{}\n{storage}\n{names:?}", of_files[0][0]);
        let path = settings.dir.join(format!("{}.{EXTENSION}", Fingerprint::of(key.as_bytes()).text()));
        Some(Self { settings: settings.clone(), path, identity: format!("{identity}\n").into_bytes(), views })
    }

    fn data_bytes(&self) -> u64 {
        self.views.iter().map(|view| view.bytes).sum()
    }

    fn file_bytes(&self) -> u64 {
        self.identity.len() as u64 + self.data_bytes() + 4 * self.views.len() as u64
    }

    /// Fills the buffers from the copy; false where there is none that is whole and of these weights.
    ///
    /// # Errors
    /// A failing device.
    pub(super) async fn restore(&self, gpu: &Gpu, buffers: &Buffers, mut advance: impl FnMut(f64)) -> Result<bool> {
        let Ok((mut file, checksums)) = self.open() else { return Ok(false) };
        let mut done = 0;
        for (view, checksum) in self.views.iter().zip(checksums) {
            let mut found = 0;
            for piece in pieces(*view) {
                let mut bytes = vec![0; piece.bytes as usize];
                if file.read_exact(&mut bytes).is_err() {
                    return Ok(false);
                }
                found = crc32c::crc32c_append(found, &bytes);
                gpu.write(buffers, piece, &bytes);
                // Written data waits in host memory until it is flushed.
                gpu.flush().await?;
                done += piece.bytes;
                advance(done as f64 / self.data_bytes() as f64);
            }
            if found != checksum {
                return Ok(false);
            }
        }
        // A directory that only may be read leaves the order as it is.
        let _ = files::touch(&self.path);
        make_room(&self.settings, &self.path, self.file_bytes());
        Ok(true)
    }

    /// The file at its first buffer, and the checksums.
    fn open(&self) -> io::Result<(File, Vec<u32>)> {
        let start = self.identity.len() as u64;
        let checksum_bytes = 4 * self.views.len();
        let mut file = File::open(&self.path)?;
        let mut identity = vec![0; self.identity.len()];
        file.read_exact(&mut identity)?;
        if identity != self.identity || files::len(&self.path)? != self.file_bytes() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        file.seek(SeekFrom::Start(start + self.data_bytes()))?;
        let mut checksums = vec![0; checksum_bytes];
        file.read_exact(&mut checksums)?;
        file.seek(SeekFrom::Start(start))?;
        let checksums = checksums.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok((file, checksums.collect()))
    }

    /// Writes the copy from the filled buffers.
    ///
    /// # Errors
    /// A failing device; a full disk only leaves no copy, and so does a bound that the copy alone exceeds.
    pub(super) async fn store(&self, gpu: &Gpu, buffers: &Buffers) -> Result<()> {
        if self.file_bytes() > self.settings.max_bytes {
            return Ok(());
        }
        make_room(&self.settings, &self.path, self.file_bytes());
        let beside = self.path.with_extension(format!("{}.part", files::writer_id()));
        let written = self.write(gpu, buffers, &beside).await;
        if !matches!(written, Ok(true)) {
            let _ = files::remove_file(&beside);
        }
        written.map(|_| ())
    }

    async fn write(&self, gpu: &Gpu, buffers: &Buffers, beside: &Path) -> Result<bool> {
        let begin = || -> io::Result<File> {
            files::create_dir_all(self.path.parent().unwrap_or(Path::new("")))?;
            let mut file = files::create_new(beside)?;
            file.write_all(&self.identity)?;
            Ok(file)
        };
        let Ok(mut file) = begin() else { return Ok(false) };
        let mut checksums = Vec::new();
        for view in &self.views {
            let mut checksum = 0;
            for piece in pieces(*view) {
                let bytes = gpu.read(buffers, piece).await?;
                checksum = crc32c::crc32c_append(checksum, &bytes);
                if file.write_all(&bytes).is_err() {
                    return Ok(false);
                }
            }
            checksums.extend_from_slice(&checksum.to_le_bytes());
        }
        let mut finish = || -> io::Result<()> {
            file.write_all(&checksums)?;
            file.sync_all()?;
            files::rename(beside, &self.path)
        };
        Ok(finish().is_ok())
    }
}

fn pieces(view: View) -> impl Iterator<Item = View> {
    (0..view.bytes.div_ceil(PIECE_BYTES))
        .map(move |i| view.slice(i * PIECE_BYTES, PIECE_BYTES.min(view.bytes - i * PIECE_BYTES)))
}
