//! Files on disk: the standard library's functions under the same names as in [`super::mounted`].

pub use std::fs::{File, create_dir_all, read, read_to_string, remove_dir_all, remove_file, rename};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A number for temporary file names that differs between running processes.
pub fn writer_id() -> u32 {
    std::process::id()
}

pub fn is_file(path: &Path) -> bool {
    path.is_file()
}

pub fn is_dir(path: &Path) -> bool {
    path.is_dir()
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}

pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize()
}

/// Size of a file in bytes.
pub fn len(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// Time of a file's last change, in nanoseconds since an unspecified start.
pub fn modified(path: &Path) -> io::Result<u128> {
    let since = std::fs::metadata(path)?.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(since.unwrap_or_else(|before| before.duration()).as_nanos())
}

/// Time since a file's last change; zero for a time in the future.
pub fn age(path: &Path) -> io::Result<Duration> {
    Ok(std::fs::metadata(path)?.modified()?.elapsed().unwrap_or_default())
}

/// Sets the time of a file's last change to now.
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

/// Names of the entries of a directory, in no particular order.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Opens a file for appending and creates it where it is missing.
pub fn append(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// Writes a directory to disk, which makes the renames in it durable. Windows has no such call and needs none.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
