//! Files on disk: the standard library's functions under the same names as in [`super::mounted`].

pub use std::fs::{File, create_dir_all, read, read_to_string, remove_dir_all, remove_file, rename};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A number for temporary file names that differs between running processes.
pub fn writer_id() -> u32 {
    std::process::id()
}

/// True if `path` is a file, or a link to one.
pub fn is_file(path: &Path) -> bool {
    path.is_file()
}

/// True if `path` is a directory, or a link to one.
pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

/// True if there is a file or a directory at `path`.
pub fn exists(path: &Path) -> bool {
    path.exists()
}

/// The absolute path without links and without `..`.
///
/// # Errors
/// There is nothing at `path`, or it cannot be read.
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// Size of a file in bytes.
///
/// # Errors
/// There is nothing at `path`, or it cannot be read.
pub fn len(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// Time of a file's last change, in nanoseconds since an unspecified start.
///
/// # Errors
/// There is nothing at `path`, or the file system keeps no time of change.
pub fn modified(path: &Path) -> io::Result<u128> {
    let since = std::fs::metadata(path)?.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(since.unwrap_or_else(|before| before.duration()).as_nanos())
}

/// Time since a file's last change; zero for a time in the future.
///
/// # Errors
/// As [`modified`].
pub fn age(path: &Path) -> io::Result<Duration> {
    Ok(std::fs::metadata(path)?.modified()?.elapsed().unwrap_or_default())
}

/// Sets the time of a file's last change to now.
///
/// # Errors
/// The file is missing or cannot be written.
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

/// Names of the entries of a directory, in no particular order.
///
/// # Errors
/// The directory is missing or cannot be read.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Opens a file for appending and creates it where it is missing.
///
/// # Errors
/// The directory above it is missing, or the file cannot be written.
pub fn append(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// Writes a directory to disk, which makes the renames in it durable. Windows has no such call and needs none.
///
/// # Errors
/// The directory is missing, or the disk fails.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
