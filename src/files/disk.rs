//! Files on disk: the standard library's functions, under the names that [`super::mounted`] has too.

pub use std::fs::{File, create_dir_all, read, read_to_string, remove_dir_all, remove_file, rename};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A number that no other process has which may write beside this one.
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

/// Bytes of a file.
pub fn len(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

/// When a file was last changed, in nanoseconds of no stated beginning.
pub fn modified(path: &Path) -> io::Result<u128> {
    let since = std::fs::metadata(path)?.modified()?.duration_since(std::time::UNIX_EPOCH);
    Ok(since.unwrap_or_else(|before| before.duration()).as_nanos())
}

/// How long ago a file was last changed; nothing for one of the future.
pub fn age(path: &Path) -> io::Result<Duration> {
    Ok(std::fs::metadata(path)?.modified()?.elapsed().unwrap_or_default())
}

/// Makes now the time of a file's last change.
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

/// The names in a directory, in no order.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// Opens a file, made if need be, to write at its end.
pub fn append(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}

/// A rename is on disk once its directory is; Windows has no such call and needs none.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}
