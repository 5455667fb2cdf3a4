//! Locks of output directories, so that two programs never mix their files. The system frees a lock when its process ends, however
//! it ends.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::without_links;
use crate::setting::OUT;
use crate::{Error, Result};

const NAME: &str = ".loraine.lock";
/// Attempts at a lock: those who only ask whether it is free hold it for a moment.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// A directory that this process alone writes to until the value is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    path: PathBuf,
    /// None on a file system without locks.
    file: Option<File>,
    /// Directories that were made for the lock, the deepest first; the empty ones go with it.
    made: Vec<PathBuf>,
}

/// Locks a directory for a program that writes files into it. The directory is made if need be, and removed with the lock if it
/// is still empty then.
///
/// # Errors
/// Another process holds the lock, or the directory cannot be made or written to.
pub fn lock_directory(dir: &Path) -> Result<DirectoryLock> {
    lock(dir, dir, NAME)
}

/// Locks a place that a finished directory will be moved to. The lock lies beside it.
///
/// # Errors
/// As [`lock_directory`].
pub fn lock_place(place: &Path) -> Result<DirectoryLock> {
    let name = place.file_name().and_then(|n| n.to_str()).ok_or_else(|| Error::file(place, "is no directory name"))?;
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    lock(place, parent, &format!(".{name}{NAME}"))
}

/// # Errors
/// Another process holds the lock of the directory.
pub fn check_unlocked(dir: &Path) -> Result<()> {
    let Ok(file) = without_links(File::options().read(true)).open(dir.join(NAME)) else { return Ok(()) };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(taken(dir, &file)),
        _ => Ok(()),
    }
}

fn lock(subject: &Path, dir: &Path, name: &str) -> Result<DirectoryLock> {
    let made = dir.ancestors().take_while(|at| !at.as_os_str().is_empty() && !at.exists()).map(Path::to_owned);
    let mut lock = DirectoryLock { path: dir.join(name), file: None, made: made.collect() };
    let mut attempts = 0;
    loop {
        let opened = fs::create_dir_all(dir).and_then(|()| open(&lock.path));
        let mut file = match opened {
            Ok(file) => file,
            // The last holder has removed the directory meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => {
                attempts += 1;
                continue;
            }
            Err(e) => return Err(Error::file(subject, format!("cannot be written to: {e}"))),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if attempts < ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(PAUSE);
                continue;
            }
            Err(TryLockError::WouldBlock) => return Err(taken(subject, &file)),
            // A file system without locks: the run goes on without, as every program did before.
            Err(TryLockError::Error(_)) => return Ok(lock),
        }
        // The last holder may have removed the file between the opening and the locking.
        if is_at(&file, &lock.path) {
            let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
            lock.file = Some(file);
            return Ok(lock);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    without_links(File::options().read(true).write(true).create(true)).open(path)
}

fn taken(subject: &Path, mut file: &File) -> Error {
    let mut text = String::new();
    let holder = match file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok()) {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    };
    Error::file(
        subject,
        format!("{holder} is writing to it; wait until it has ended, or choose another directory for {OUT}"),
    )
}

/// True if `path` still leads to the open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let [Ok(open), Ok(found)] = [file.metadata(), fs::symlink_metadata(path)] else { return false };
    (open.dev(), open.ino()) == (found.dev(), found.ino())
}

/// Lock files stay where they are on systems that cannot tell files apart by a number.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // While the lock is held, so that nobody else's is removed.
        if cfg!(unix) && self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
        self.file = None;
        for dir in &self.made {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_a_directory_and_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("deep/run");
        check_unlocked(&dir).unwrap();
        let held = lock_directory(&dir).unwrap();
        for refusal in [lock_directory(&dir).err(), check_unlocked(&dir).err()] {
            let message = refusal.unwrap().to_string();
            assert!(message.contains(&format!("process {} is writing to it", std::process::id())), "{message}");
        }
        drop(held);
        assert!(!root.path().join("deep").exists(), "an empty directory goes with its lock");
        let held = lock_directory(&dir).unwrap();
        fs::write(dir.join("file"), "x").unwrap();
        drop(held);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "the file alone");
        // As after a kill.
        fs::write(dir.join(NAME), "17").unwrap();
        check_unlocked(&dir).unwrap();
        drop(lock_directory(&dir).unwrap());
    }

    #[test]
    fn a_place_is_locked_beside_itself() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("model");
        let held = lock_place(&place).unwrap();
        assert!(lock_place(&place).is_err() && !place.exists());
        drop(held);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_planted_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let victim = root.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        std::os::unix::fs::symlink(&victim, root.path().join("run").join(NAME)).unwrap();
        assert!(lock_directory(&root.path().join("run")).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
