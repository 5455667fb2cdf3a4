//! The file system that the library reads and writes: the disk, or in a browser the files that a page has mounted. Both provide the
//! same functions.

#[cfg(not(target_arch = "wasm32"))]
mod disk;
mod fingerprint;
#[cfg(not(target_arch = "wasm32"))]
mod lock;
#[cfg(any(target_arch = "wasm32", test))]
pub mod mounted;

use std::io::{self, Write};
use std::path::Path;

#[cfg(not(target_arch = "wasm32"))]
pub use disk::*;
#[cfg(not(target_arch = "wasm32"))]
pub use lock::{DirectoryLock, check_unlocked, lock_directory, lock_place};
#[cfg(target_arch = "wasm32")]
pub use mounted::*;

pub use fingerprint::Fingerprint;

use crate::{Error, Result};

/// Writes `bytes` to `path` atomically: a reader, also after a crash, sees either the old file or the new one. On return the new one
/// is on the disk.
///
/// # Errors
/// The file cannot be written. One that is there stays as it is.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| Error::file(path, "is not a file name"))?;
    let beside = path.with_file_name(format!(".{name}.part"));
    let write = || -> io::Result<()> {
        let mut file = create_new(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rename(&beside, path)?;
        sync_directory(path.parent().unwrap_or(Path::new("")))
    };
    write().map_err(|e| {
        let _ = remove_file(&beside);
        Error::file(path, format!("cannot be written: {e}"))
    })
}

/// As [`write_atomically`]. In a browser, where files lie in memory, the bytes become the file without a copy beside them.
///
/// # Errors
/// As [`write_atomically`].
#[cfg(not(target_arch = "wasm32"))]
pub fn write_owned_atomically(path: &Path, bytes: Vec<u8>) -> Result<()> {
    write_atomically(path, &bytes)
}

/// As [`write_atomically`]. The bytes become the file without a copy beside them.
///
/// # Errors
/// As [`write_atomically`].
#[cfg(target_arch = "wasm32")]
pub fn write_owned_atomically(path: &Path, bytes: Vec<u8>) -> Result<()> {
    mounted::replace(path, bytes).map_err(|e| Error::file(path, format!("cannot be written: {e}")))
}

/// True if a file begins as the text that a clone without git-lfs has in its place.
pub fn is_lfs_pointer(beginning: &[u8]) -> bool {
    beginning.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Creates a file that did not exist. A file that is there, or a link, is removed first and never written through.
///
/// # Errors
/// A directory that is missing, or that cannot be written to.
pub fn create_new(path: &Path) -> io::Result<File> {
    remove_if_there(path)?;
    File::create_new(path)
}

/// Removes a file, a link, or a directory with everything below it. A missing path is not an error.
///
/// # Errors
/// The path cannot be removed.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match if is_dir(path) && !is_link(path) { remove_dir_all(path) } else { remove_file(path) } {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
