//! Files on disk: the standard library's functions under the same names as in [`super::mounted`].

use std::fs::OpenOptions;
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

/// True for a symbolic link, also one that leads nowhere.
pub fn is_link(path: &Path) -> bool {
    path.is_symlink()
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

/// Opens a file for appending and creates it where it is missing. A link is not followed.
///
/// # Errors
/// The directory above it is missing, or the file cannot be written.
pub fn append(path: &Path) -> io::Result<File> {
    without_links(File::options().create(true).append(true)).open(path)
}

/// The options for opening, so that a link in the place of the file is an error.
pub(super) fn without_links(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Writes a directory to disk, which makes the renames in it durable. Windows has no such call and needs none, nor have some
/// network file systems.
///
/// # Errors
/// The directory is missing, or the disk fails.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    match File::open(dir) {
        // A directory may be open for writing alone.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(e),
        Ok(dir) => match dir.sync_all() {
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
            synced => synced,
        },
    }
}

/// Writes a directory's files to disk, and the directory itself. It holds no other directories.
///
/// # Errors
/// The directory is missing, or the disk fails.
pub fn sync_files(dir: &Path) -> io::Result<()> {
    for name in names(dir)? {
        // Windows syncs only files that are open for writing; there the writers have done so.
        if cfg!(unix) {
            File::open(dir.join(name))?.sync_all()?;
        }
    }
    sync_directory(dir)
}

/// Exchanges two paths at one stroke.
///
/// # Errors
/// The system cannot do so (`Unsupported`), or one of the paths cannot be moved.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).map_err(|e| match e {
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP => {
                io::ErrorKind::Unsupported.into()
            }
            e => e.into(),
        })
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    {
        let _ = (one, other);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Asks whether files can be created in a directory.
///
/// # Errors
/// Files cannot be created in `dir`.
pub fn check_writable(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    #[cfg(unix)]
    {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        match accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            // Old systems cannot tell without trying.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => Ok(()),
            answer => answer.map_err(io::Error::from),
        }
    }
    #[cfg(not(unix))]
    {
        let probe = dir.join(format!(".loraine-{}.part", writer_id()));
        File::create_new(&probe).and_then(|_| remove_file(&probe))
    }
}
