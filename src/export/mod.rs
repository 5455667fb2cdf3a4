//! Writes model directories made from other models: merged with an adapter, or quantized to 4 bits. Weights are copied one matrix at
//! a time, and a directory gets its final name only when it is complete.

pub mod gguf_adapter;
mod gguf_keys;
pub mod gguf_merge;
mod gguf_tokens;
mod gguf_writer;
pub mod merge;
mod others;
pub mod quantize;
mod writer;

pub use writer::DEFAULT_SHARD_BYTES;

use std::io;
use std::path::{Path, PathBuf};

use crate::files::{self, DirectoryLock};
use crate::model::model_directory::is_model_file;
use crate::setting::{OUT, OVERWRITE};
use crate::{Error, Result};

/// An output directory that is still being written, under a temporary name beside its final path. Nobody else writes to the path
/// meanwhile.
///
/// At any moment the path holds the old model or the new one, each whole; where the system cannot exchange two directories at one
/// stroke, it may be missing for an instant, and the old model then comes back with the next export.
struct OutputDirectory {
    place: PathBuf,
    /// The new model while it is written.
    beside: PathBuf,
    /// The old model while it is replaced.
    aside: PathBuf,
    _lock: DirectoryLock,
}

impl OutputDirectory {
    /// Makes the temporary directory for a model that is made from the one in `source`.
    ///
    /// # Errors
    /// The path exists and `overwrite` is false, is the source itself, is being written by another process, or cannot be written.
    fn create(place: &Path, source: &Path, overwrite: bool) -> Result<Self> {
        if let (Ok(from), Ok(to)) = (files::canonicalize(source), files::canonicalize(place))
            && from == to
        {
            return Err(Error::file(place, format!("is the model's own directory; choose another for {OUT}")));
        }
        let name =
            place.file_name().and_then(|n| n.to_str()).ok_or_else(|| Error::file(place, "is no directory name"))?;
        let lock = files::lock_place(place)?;
        let named = |end: &str| place.with_file_name(format!(".{name}.{}.{end}", files::writer_id()));
        let out = Self { place: place.to_owned(), beside: named("part"), aside: named("old"), _lock: lock };
        clean_up(place, name).map_err(|e| out.failed(&e))?;
        let empty = files::names(place).is_ok_and(|names| names.is_empty());
        if files::exists(place) && !empty && !overwrite {
            let problem = format!("exists already; choose a new directory, or {OVERWRITE} to replace it");
            return Err(Error::file(place, problem));
        }
        if files::exists(place) && !empty && !files::is_file(&place.join("config.json")) {
            return Err(Error::file(place, "exists and holds no model; it is not replaced"));
        }
        files::check_unlocked(place)?;
        files::create_dir_all(&out.beside).map_err(|e| out.failed(&e))?;
        Ok(out)
    }

    fn failed(&self, e: &io::Error) -> Error {
        Error::file(&self.place, format!("cannot be written: {e}"))
    }

    /// Directory for the files while they are written.
    fn path(&self) -> &Path {
        &self.beside
    }

    /// Moves the complete directory to its final path, on the disk too. The model that was there is removed after that; what else its
    /// directory held stays.
    fn finish(self) -> Result<()> {
        if files::is_dir(&self.place) {
            bring_over(&self.place, &self.beside, |name| !is_model_file(name)).map_err(|e| self.failed(&e))?;
        }
        self.move_in().map_err(|e| self.failed(&e))?;
        for old in [&self.beside, &self.aside] {
            files::remove_if_there(old).map_err(|e| {
                let problem =
                    format!("holds the new model, but the old one, {}, cannot be removed: {e}", old.display());
                Error::file(&self.place, problem)
            })?;
        }
        Ok(())
    }

    fn move_in(&self) -> io::Result<()> {
        files::sync_files(&self.beside)?;
        if files::exists(&self.place) || files::is_link(&self.place) {
            match files::exchange(&self.beside, &self.place) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    files::rename(&self.place, &self.aside)?;
                    files::rename(&self.beside, &self.place).inspect_err(|_| {
                        let _ = files::rename(&self.aside, &self.place);
                    })?;
                }
                exchanged => exchanged?,
            }
        } else {
            files::rename(&self.beside, &self.place)?;
        }
        files::sync_directory(parent(&self.place))
    }
}

/// Puts the entries of a directory whose names `wanted` accepts into another one too, as further links to the files where the disk has
/// them. Those that are there already stay.
fn bring_over(from: &Path, to: &Path, wanted: fn(&str) -> bool) -> io::Result<()> {
    for name in files::names(from)?.iter().filter(|name| wanted(name)) {
        let (here, there) = (from.join(name), to.join(name));
        if files::is_dir(&here) && !files::is_link(&here) {
            files::create_dir_all(&there)?;
            bring_over(&here, &there, |_| true)?;
        } else if !files::exists(&there) {
            std::fs::hard_link(&here, &there).or_else(|_| std::fs::copy(&here, &there).map(|_| ()))?;
        }
    }
    Ok(())
}

/// Takes away what exports to a path that were cut short have left; `name` is its last part, and the caller has locked it. An old model
/// that was moved aside and not yet replaced goes back to its place.
fn clean_up(place: &Path, name: &str) -> io::Result<()> {
    let parent = parent(place);
    for left in files::names(parent)? {
        let Some(middle) = left.strip_prefix(&format!(".{name}.")) else { continue };
        let (number, end) = middle.split_once('.').unwrap_or(("", middle));
        if !number.bytes().all(|byte| byte.is_ascii_digit()) || !["part", "old"].contains(&end) {
            continue;
        }
        let path = parent.join(&left);
        match end == "old" && !files::exists(place) {
            true => files::rename(&path, place)?,
            false => files::remove_if_there(&path)?,
        }
    }
    Ok(())
}

fn parent(place: &Path) -> &Path {
    place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl Drop for OutputDirectory {
    /// Removes the temporary directory after an error, or the old model after an exchange; a finished one has been renamed.
    fn drop(&mut self) {
        let _ = files::remove_if_there(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_replaced_model_leaves_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("model");
        fs::create_dir_all(place.join("notes")).unwrap();
        for name in ["config.json", "model-00001-of-00002.safetensors", "README.md", "notes/mine.txt", "LICENSE"] {
            fs::write(place.join(name), "old").unwrap();
        }
        let write = |out: &OutputDirectory| fs::write(out.path().join("config.json"), "new").unwrap();
        let source = dir.path().join("source");
        assert!(OutputDirectory::create(&place, &source, false).is_err());
        let out = OutputDirectory::create(&place, &source, true).unwrap();
        write(&out);
        out.finish().unwrap();
        let read = |name: &str| fs::read_to_string(place.join(name)).ok();
        assert_eq!(read("config.json").as_deref(), Some("new"));
        assert_eq!((read("README.md").as_deref(), read("notes/mine.txt").as_deref()), (Some("old"), Some("old")));
        assert_eq!((read("model-00001-of-00002.safetensors"), read("LICENSE")), (None, None));
    }
}
