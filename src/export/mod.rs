//! Writes model directories made from other models: merged with an adapter, or quantized to 4 bits. Weights are copied one matrix at
//! a time, and a directory gets its final name only when it is complete.

pub mod merge;
pub mod quantize;
mod writer;

pub use writer::DEFAULT_SHARD_BYTES;

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::remove_if_there;
use crate::setting::{OUT, OVERWRITE};
use crate::{Error, Result};

/// An output directory that is still being written, under a temporary name beside its final path.
struct OutputDirectory {
    place: PathBuf,
    beside: PathBuf,
}

impl OutputDirectory {
    /// Makes the temporary directory for a model that is made from the one in `source`.
    ///
    /// # Errors
    /// The path exists and `overwrite` is false, is the source itself, or cannot be written.
    fn create(place: &Path, source: &Path, overwrite: bool) -> Result<Self> {
        if let (Ok(from), Ok(to)) = (source.canonicalize(), place.canonicalize())
            && from == to
        {
            return Err(Error::file(place, format!("is the model's own directory; choose another for {OUT}")));
        }
        let empty = fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_none());
        if place.exists() && !empty && !overwrite {
            let problem = format!("exists already; choose a new directory, or {OVERWRITE} to replace it");
            return Err(Error::file(place, problem));
        }
        if place.exists() && !empty && !place.join("config.json").is_file() {
            return Err(Error::file(place, "exists and holds no model; it is not replaced"));
        }
        let name =
            place.file_name().and_then(|n| n.to_str()).ok_or_else(|| Error::file(place, "is no directory name"))?;
        let beside = place.with_file_name(format!(".{name}.part"));
        remove_if_there(&beside)
            .and_then(|()| fs::create_dir_all(&beside))
            .map_err(|e| Error::file(place, format!("cannot be written: {e}")))?;
        Ok(Self { place: place.to_owned(), beside })
    }

    /// Directory for the files while they are written.
    fn path(&self) -> &Path {
        &self.beside
    }

    /// Renames the complete directory to its final path.
    fn finish(self) -> Result<()> {
        let failed = |e: std::io::Error| Error::file(&self.place, format!("cannot be written: {e}"));
        if self.place.exists() {
            fs::remove_dir_all(&self.place).map_err(failed)?;
        }
        fs::rename(&self.beside, &self.place).map_err(failed)
    }
}

impl Drop for OutputDirectory {
    /// Removes the temporary directory after an error; a finished one has been renamed.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.beside);
    }
}
