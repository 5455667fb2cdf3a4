//! Files of a browser page: bytes in memory, or a reader that returns byte ranges of an object that the page holds. Each thread has
//! its own store; in a page that thread is the worker that trains. Paths are not normalized and there are no links.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::Result;

/// Fills a buffer with the bytes from an offset on.
pub type RangeReader = dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// Takes the bytes of a file from an offset on.
pub type RangeWriter = dyn Fn(u64, &[u8]) -> io::Result<()>;

/// Takes a copy of a file's bytes and gives a reader of it.
pub type Keeper = dyn Fn(&[u8]) -> Rc<RangeReader>;

/// Files of so many bytes are large.
const LARGE_BYTES: usize = 1 << 20;

#[derive(Clone)]
enum Content {
    Bytes(Rc<RefCell<Vec<u8>>>),
    Ranges {
        len: u64,
        read: Rc<RangeReader>,
    },
    /// Bytes that went to the page; they cannot be read here.
    Sent {
        len: Rc<Cell<u64>>,
        write: Rc<RangeWriter>,
    },
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.borrow().len() as u64,
            Self::Ranges { len, .. } => *len,
            Self::Sent { len, .. } => len.get(),
        }
    }

    /// Copies the bytes from `at` on into `buffer` and returns how many there were.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.len().saturating_sub(at).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..count];
        match self {
            Self::Bytes(bytes) => buffer.copy_from_slice(&bytes.borrow()[at as usize..at as usize + count]),
            Self::Ranges { read, .. } if count > 0 => read(at, buffer)?,
            Self::Ranges { .. } => {}
            Self::Sent { .. } => return Err(io::Error::new(ErrorKind::PermissionDenied, "the page has this file")),
        }
        Ok(count)
    }
}

#[derive(Default)]
struct Store {
    files: BTreeMap<PathBuf, Content>,
    directories: BTreeSet<PathBuf>,
    keeper: Option<Rc<Keeper>>,
    /// By the path of the file that is written.
    writers: BTreeMap<PathBuf, Rc<RangeWriter>>,
}

thread_local! {
    static STORE: RefCell<Store> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut Store) -> T) -> T {
    STORE.with_borrow_mut(act)
}

fn not_found() -> io::Error {
    io::Error::new(ErrorKind::NotFound, "no such file or directory")
}

fn mount(path: &Path, content: Content) {
    if let Some(parent) = path.parent() {
        let _ = create_dir_all(parent);
    }
    with(|store| store.files.insert(path.to_owned(), content));
}

/// Stores bytes at `path` and replaces an existing file. Large files go to the page, where it takes them (see [`set_keeper`]).
pub fn mount_bytes(path: &Path, bytes: Vec<u8>) {
    mount(path, content_of(bytes));
}

fn content_of(bytes: Vec<u8>) -> Content {
    let keeper = with(|store| store.keeper.clone());
    match keeper.filter(|_| bytes.len() >= LARGE_BYTES) {
        Some(keep) => Content::Ranges { len: bytes.len() as u64, read: keep(&bytes) },
        None => Content::Bytes(Rc::new(RefCell::new(bytes))),
    }
}

/// Has large files that are written as a whole kept by `keep`, which copies the bytes to a place of its own. The memory of a WebAssembly
/// module never shrinks, that of the page does.
pub fn set_keeper(keep: Rc<Keeper>) {
    with(|store| store.keeper = Some(keep));
}

/// Writes a whole file, in place of one that is there.
///
/// # Errors
/// The directory above it is missing, or `path` is a directory.
pub fn replace(path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    check_place(path)?;
    mount_bytes(path, bytes);
    Ok(())
}

/// # Errors
/// The directory above `path` is missing, or `path` is a directory.
fn check_place(path: &Path) -> io::Result<()> {
    let above = path.parent().is_none_or(|parent| parent.as_os_str().is_empty() || is_dir(parent));
    if above && !is_dir(path) { Ok(()) } else { Err(not_found()) }
}

/// Mounts a file of `len` bytes at `path`. `read` provides its content on demand.
pub fn mount_reader(path: &Path, len: u64, read: Rc<RangeReader>) {
    mount(path, Content::Ranges { len, read });
}

/// Has the bytes of a file go to `write` as they are written, also while it has a temporary name: `path` stays out of memory.
pub fn mount_writer(path: &Path, write: Rc<RangeWriter>) {
    if let Some(parent) = path.parent() {
        let _ = create_dir_all(parent);
    }
    with(|store| store.writers.insert(path.to_owned(), write));
}

/// Forgets the writer of `path`, and what was written.
pub fn unmount_writer(path: &Path) {
    with(|store| {
        store.writers.remove(path);
        store.files.remove(path);
    });
}

/// The page's writer of a file, by the file's name or by `.NAME.….part`, as it is called until it is whole.
fn writer_of(path: &Path) -> Option<Rc<RangeWriter>> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let asked = name(path);
    with(|store| {
        let fits = |own: &Path| {
            let part = asked.starts_with(&format!(".{}.", name(own))) && asked.ends_with(".part");
            own == path || (part && own.parent() == path.parent())
        };
        store.writers.iter().find(|(own, _)| fits(own)).map(|(_, write)| write.clone())
    })
}

/// Every file below `dir` with its bytes, sorted by path.
pub fn files_below(dir: &Path) -> Vec<(PathBuf, u64)> {
    with(|store| {
        let below = store.files.iter().filter(|(path, _)| path.starts_with(dir));
        below.map(|(path, content)| (path.clone(), content.len())).collect()
    })
}

/// Reads a whole file into memory.
///
/// # Errors
/// There is no such file, or the page's reader fails.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path.as_ref())?;
    let mut bytes = vec![0; usize::try_from(file.content.len()).map_err(io::Error::other)?];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file as text.
///
/// # Errors
/// As [`read`], and bytes that are not UTF-8.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// Makes a directory and those above it. One that is there already is no error.
///
/// # Errors
/// A file has the name of one of these directories.
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    with(|store| match path.ancestors().find(|at| store.files.contains_key(*at)) {
        Some(_) => Err(io::Error::new(ErrorKind::AlreadyExists, "a file stands in the way")),
        None => {
            store.directories.extend(path.ancestors().map(Path::to_owned));
            Ok(())
        }
    })
}

/// Removes a file.
///
/// # Errors
/// There is no such file.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    with(|store| store.files.remove(path.as_ref())).map(|_| ()).ok_or_else(not_found)
}

/// Removes a directory with everything below it.
///
/// # Errors
/// There is no such directory.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    with(|store| {
        if !store.directories.contains(path) {
            return Err(not_found());
        }
        store.files.retain(|file, _| !file.starts_with(path));
        store.directories.retain(|dir| !dir.starts_with(path));
        Ok(())
    })
}

/// Renames a file and replaces `to`, or renames a directory where `to` does not exist.
///
/// # Errors
/// There is nothing at `from`, or a directory would replace another.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    with(|store| {
        if let Some(content) = store.files.remove(from) {
            store.files.insert(to.to_owned(), content);
            return Ok(());
        }
        if !store.directories.contains(from) {
            return Err(not_found());
        }
        if store.directories.contains(to) {
            return Err(io::Error::new(ErrorKind::DirectoryNotEmpty, "a directory stands there"));
        }
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_owned(),
        };
        store.files = std::mem::take(&mut store.files).into_iter().map(|(p, content)| (moved(&p), content)).collect();
        store.directories = std::mem::take(&mut store.directories).iter().map(|p| moved(p)).collect();
        Ok(())
    })
}

/// Only one thread writes to the store, so any number is unique.
pub fn writer_id() -> u32 {
    1
}

/// True if a file is mounted at `path`.
pub fn is_file(path: &Path) -> bool {
    with(|store| store.files.contains_key(path))
}

/// True if `path` is a directory: it was made, or a file was mounted below it.
pub fn is_dir(path: &Path) -> bool {
    with(|store| store.directories.contains(path))
}

/// True if there is a file or a directory at `path`.
pub fn exists(path: &Path) -> bool {
    is_file(path) || is_dir(path)
}

/// There are no links.
pub fn is_link(_: &Path) -> bool {
    false
}

/// The path as it is, since there are no links here.
///
/// # Errors
/// There is nothing at `path`.
pub fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    if exists(path) { Ok(path.to_owned()) } else { Err(not_found()) }
}

/// Size of a file in bytes.
///
/// # Errors
/// There is no such file.
pub fn len(path: &Path) -> io::Result<u64> {
    with(|store| store.files.get(path).map(Content::len)).ok_or_else(not_found)
}

/// Mounted files have no time of change.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
pub fn modified(_: &Path) -> io::Result<u128> {
    Err(ErrorKind::Unsupported.into())
}

/// Mounted files have no age.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
pub fn age(_: &Path) -> io::Result<Duration> {
    Err(ErrorKind::Unsupported.into())
}

/// Does nothing: mounted files have no time of change.
pub fn touch(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Names of the entries of a directory, in no particular order.
///
/// # Errors
/// There is no such directory.
pub fn names(dir: &Path) -> io::Result<Vec<String>> {
    if !is_dir(dir) {
        return Err(not_found());
    }
    with(|store| {
        let here = store.files.keys().chain(&store.directories).filter(|path| path.parent() == Some(dir));
        Ok(here.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    })
}

/// Opens a file for appending and creates it where it is missing.
///
/// # Errors
/// The directory above it is missing, or `path` is a directory.
pub fn append(path: &Path) -> io::Result<File> {
    let mut file = if is_file(path) { File::open(path)? } else { File::create(path)? };
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

/// Every directory can be written to.
///
/// # Errors
/// None.
pub fn check_writable(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Each page has its own store, so nobody else writes to a directory.
#[derive(Debug)]
pub struct DirectoryLock;

/// Does nothing: see [`DirectoryLock`].
pub fn lock_directory(_: &Path) -> Result<DirectoryLock> {
    Ok(DirectoryLock)
}

/// Does nothing: see [`DirectoryLock`].
pub fn lock_place(_: &Path) -> Result<DirectoryLock> {
    Ok(DirectoryLock)
}

/// Does nothing: see [`DirectoryLock`].
pub fn check_unlocked(_: &Path) -> Result<()> {
    Ok(())
}

/// The store cannot exchange two paths.
///
/// # Errors
/// Always [`ErrorKind::Unsupported`].
pub fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Does nothing: the store has no disk to write to.
pub fn sync_files(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Does nothing: the store has no disk to write to.
pub fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// An open file. As on disk, it stays readable after its path is replaced by another file.
pub struct File {
    content: Content,
    at: u64,
}

impl File {
    /// Opens a file for reading, at its first byte.
    ///
    /// # Errors
    /// There is no such file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let content = with(|store| store.files.get(path.as_ref()).cloned()).ok_or_else(not_found)?;
        Ok(Self { content, at: 0 })
    }

    /// Makes an empty file, in place of one that is there, and opens it for writing.
    ///
    /// # Errors
    /// The directory above it is missing, or `path` is a directory.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        check_place(path)?;
        match writer_of(path) {
            Some(write) => mount(path, Content::Sent { len: Rc::default(), write }),
            None => mount_bytes(path, Vec::new()),
        }
        Self::open(path)
    }

    /// Creates a file that is not there.
    ///
    /// # Errors
    /// As [`Self::create`], or the file is there.
    pub fn create_new(path: impl AsRef<Path>) -> io::Result<Self> {
        match exists(path.as_ref()) {
            true => Err(ErrorKind::AlreadyExists.into()),
            false => Self::create(path),
        }
    }

    /// Does nothing: what is mounted lies in memory.
    ///
    /// # Errors
    /// None; the function has the form of the disk's.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read_at(self.at, buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.content.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a place before the file's begin"))?;
        Ok(self.at)
    }
}

impl Write for File {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Content::Sent { len, write } = &self.content {
            write(self.at, buffer)?;
            self.at += buffer.len() as u64;
            len.set(len.get().max(self.at));
            return Ok(buffer.len());
        }
        let Content::Bytes(bytes) = &self.content else {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "the page gave this file to be read alone"));
        };
        let (mut bytes, at) = (bytes.borrow_mut(), self.at as usize);
        let end = at + buffer.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(buffer);
        self.at = end as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> String {
        read_to_string(Path::new(path)).unwrap()
    }

    #[test]
    fn files_are_written_moved_and_removed_as_on_disk() {
        let at = Path::new;
        assert_eq!(File::create("/run/a").err().unwrap().kind(), ErrorKind::NotFound);
        create_dir_all("/run/deep").unwrap();
        File::create("/run/a").unwrap().write_all(b"one").unwrap();
        append(at("/run/a")).unwrap().write_all(b" two").unwrap();
        append(at("/run/deep/b")).unwrap().write_all(b"new").unwrap();
        assert_eq!((text("/run/a").as_str(), len(at("/run/a")).unwrap()), ("one two", 7));
        let mut listed = names(at("/run")).unwrap();
        listed.sort();
        assert_eq!(listed, ["a", "deep"]);
        let mut open = File::open("/run/a").unwrap();
        rename(at("/run/deep/b"), at("/run/a")).unwrap();
        let mut old = String::new();
        open.read_to_string(&mut old).unwrap();
        assert_eq!((old.as_str(), text("/run/a").as_str()), ("one two", "new"));
        rename(at("/run"), at("/other")).unwrap();
        assert!(!exists(at("/run")) && is_dir(at("/other/deep")) && text("/other/a") == "new");
        create_dir_all("/run").unwrap();
        assert_eq!(rename(at("/other"), at("/run")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        remove_dir_all("/other").unwrap();
        assert!(!exists(at("/other/a")) && !is_dir(at("/other/deep")));
        assert_eq!(remove_file("/other/a").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(remove_dir_all("/other").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(create_dir_all("/run").is_ok() && canonicalize(at("/run")).is_ok());
    }

    #[test]
    fn large_files_go_to_the_keeper() {
        let kept = Rc::new(Cell::new(0));
        let count = kept.clone();
        set_keeper(Rc::new(move |bytes: &[u8]| {
            count.set(count.get() + bytes.len());
            let own = bytes.to_vec();
            Rc::new(move |at: u64, buffer: &mut [u8]| {
                buffer.copy_from_slice(&own[at as usize..][..buffer.len()]);
                Ok(())
            })
        }));
        let path = Path::new("/run/weights");
        assert_eq!(replace(path, vec![1; 8]).unwrap_err().kind(), ErrorKind::NotFound);
        create_dir_all("/run").unwrap();
        replace(path, vec![1; 8]).unwrap();
        assert_eq!((read(path).unwrap(), kept.get()), (vec![1; 8], 0));
        let large: Vec<u8> = (0..LARGE_BYTES + 5).map(|i| (i % 251) as u8).collect();
        replace(path, large.clone()).unwrap();
        assert!(read(path).unwrap() == large && kept.get() == large.len());
        rename(path, Path::new("/run/moved")).unwrap();
        assert!(read("/run/moved").unwrap() == large && !is_file(path));
        assert_eq!(replace(Path::new("/run"), Vec::new()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn written_files_go_to_the_writer() {
        let sent = Rc::new(RefCell::new(Vec::new()));
        let take = sent.clone();
        let path = Path::new("/out/model.gguf");
        mount_writer(
            path,
            Rc::new(move |at: u64, bytes: &[u8]| {
                let mut sent = take.borrow_mut();
                if at > 4 {
                    return Err(io::Error::other("full"));
                }
                sent.truncate(at as usize);
                sent.extend_from_slice(bytes);
                Ok(())
            }),
        );
        File::create("/out/model.Modelfile").unwrap().write_all(b"FROM").unwrap();
        assert_eq!(text("/out/model.Modelfile"), "FROM");
        let part = Path::new("/out/.model.gguf.1.part");
        let mut file = File::create_new(part).unwrap();
        file.write_all(b"head").unwrap();
        file.write_all(b"er").unwrap();
        assert_eq!(file.write_all(b"x").unwrap_err().to_string(), "full");
        rename(part, path).unwrap();
        assert_eq!((sent.borrow().as_slice(), len(path).unwrap()), (b"header".as_slice(), 6));
        assert_eq!(read(path).unwrap_err().kind(), ErrorKind::PermissionDenied);
        unmount_writer(path);
        File::create(path).unwrap().write_all(b"own").unwrap();
        assert_eq!((text("/out/model.gguf").as_str(), sent.borrow().len()), ("own", 6));
    }

    #[test]
    fn readers_give_ranges_and_their_errors() {
        let path = Path::new("/models/w");
        let read = |at: u64, buffer: &mut [u8]| {
            if at >= 4 {
                return Err(io::Error::other("gone"));
            }
            buffer.iter_mut().enumerate().for_each(|(i, b)| *b = (at as usize + i) as u8);
            Ok(())
        };
        mount_reader(path, 6, Rc::new(read));
        assert!(is_dir(Path::new("/models")) && files_below(Path::new("/models")) == [(path.to_owned(), 6)]);
        let mut file = File::open(path).unwrap();
        let mut pair = [0; 2];
        file.seek(SeekFrom::Start(1)).unwrap();
        file.read_exact(&mut pair).unwrap();
        assert_eq!(pair, [1, 2]);
        file.seek(SeekFrom::Current(1)).unwrap();
        assert_eq!(file.read_exact(&mut pair).unwrap_err().to_string(), "gone");
        file.seek(SeekFrom::End(0)).unwrap();
        assert_eq!(file.read(&mut pair).unwrap(), 0);
        assert_eq!(file.write(b"x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}
