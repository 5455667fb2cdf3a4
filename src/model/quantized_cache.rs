//! A copy of a model's 4-bit weights as the device made them, so that the next start neither reads nor quantises the original.
//!
//! One file: the identity (a line of JSON), the bytes of every buffer in order, then a CRC-32C of each. A copy of anything else, or one
//! that is damaged, is passed over and written anew; one that cannot be written is done without.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::weight_files::WeightFiles;
use crate::Result;
use crate::files::{self, File};
use crate::gpu::{Buffers, Gpu, View};
use crate::ops::weight::Weight;

/// Changes whenever the same files would give other bytes.
const VERSION: u32 = 1;
/// Bytes on their way between disk and device.
const PIECE_BYTES: u64 = 16 << 20;

/// Where copies are kept, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    pub dir: PathBuf,
    /// Of less than this in the model's files no copy is kept: quantising it takes no time.
    pub min_bytes: u64,
}

/// The place of one model's copy.
pub(super) struct QuantizedCache {
    path: PathBuf,
    identity: Vec<u8>,
    views: Vec<View>,
}

impl QuantizedCache {
    /// None where no copies are kept, or none of weights as small as these. `weights` are those that the device quantises, with
    /// their names.
    pub fn of(files: &WeightFiles, weights: &[(String, &Weight)]) -> Option<Self> {
        let settings = files.cache.as_ref()?;
        let sources = weights.iter().map(|(name, _)| files.get(name)).collect::<Option<Vec<_>>>()?;
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
        let identity = json!({
            "version": VERSION,
            "files": of_files,
            "storage": format!("{:?}", weights[0].1.storage),
            "tensors": names,
            "bytes": views.iter().map(|view| view.bytes).collect::<Vec<_>>(),
        });
        // The file's name tells models and storages apart; the identity inside says whether it is still theirs.
        let key = format!("{}\n{:?}\n{names:?}", of_files[0][0], weights[0].1.storage);
        let name = format!("{:016x}.4bit", fnv1a(key.as_bytes()));
        Some(Self { path: settings.dir.join(name), identity: format!("{identity}\n").into_bytes(), views })
    }

    fn data_bytes(&self) -> u64 {
        self.views.iter().map(|view| view.bytes).sum()
    }

    /// Fills the buffers from the copy; false where there is none that is whole and of these weights.
    ///
    /// # Errors
    /// A failing device.
    pub async fn restore(&self, gpu: &Gpu, buffers: &Buffers, mut advance: impl FnMut(f64)) -> Result<bool> {
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
                // What was written waits in host memory until it is flushed.
                gpu.flush().await?;
                done += piece.bytes;
                advance(done as f64 / self.data_bytes() as f64);
            }
            if found != checksum {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The file at its first buffer, and the checksums.
    fn open(&self) -> io::Result<(File, Vec<u32>)> {
        let start = self.identity.len() as u64;
        let checksum_bytes = 4 * self.views.len();
        let mut file = File::open(&self.path)?;
        let mut identity = vec![0; self.identity.len()];
        file.read_exact(&mut identity)?;
        if identity != self.identity || files::len(&self.path)? != start + self.data_bytes() + checksum_bytes as u64 {
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
    /// A failing device; a full disk only leaves no copy.
    pub async fn store(&self, gpu: &Gpu, buffers: &Buffers) -> Result<()> {
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
            let mut file = File::create(beside)?;
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

/// Fowler, Noll and Vo's hash: the same on every machine and in every version.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
