//! Writes a GGUF file, version 3: keys, descriptions of the tensors, then their bytes one after the other.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::clean_up;
use crate::files::{self, DirectoryLock, File};
use crate::model::gguf_blocks::GgmlType;
use crate::model::gguf_file::DEFAULT_ALIGNMENT;
use crate::{Error, Result};

/// Bytes of a copied tensor that lie in memory at a time.
const COPY_BYTES: u64 = 4 << 20;

/// The value of a key, in the type that llama.cpp asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
}

impl Meta {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// The key with its type and its value as they stand in the file.
    pub(super) fn record(&self, key: &str) -> Vec<u8> {
        let mut bytes = string(key);
        let mut put = |kind: u32, value: &[u8]| {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
        };
        let list = |kind: u32, count: usize, elements: Vec<u8>| -> Vec<u8> {
            [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &elements].concat()
        };
        match self {
            Self::U32(value) => put(4, &value.to_le_bytes()),
            Self::F32(value) => put(6, &value.to_le_bytes()),
            Self::Bool(value) => put(7, &[u8::from(*value)]),
            Self::Text(text) => put(8, &string(text)),
            Self::Texts(texts) => put(9, &list(8, texts.len(), texts.iter().flat_map(|text| string(text)).collect())),
            Self::I32s(values) => put(9, &list(5, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())),
            Self::F32s(values) => put(9, &list(6, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())),
            Self::Bools(values) => put(9, &list(7, values.len(), values.iter().map(|v| u8::from(*v)).collect())),
        }
        bytes
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlannedTensor {
    pub name: String,
    /// Sizes of its dimensions, the outermost first.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

impl PlannedTensor {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 / self.kind.block() * self.kind.block_bytes()
    }
}

/// A file under a temporary name beside its own, which it gets when it is whole. Nobody else writes to its place meanwhile.
pub(super) struct GgufWriter {
    path: PathBuf,
    beside: PathBuf,
    file: BufWriter<File>,
    /// Tensors that are not written yet; the next one is last.
    left: Vec<PlannedTensor>,
    finished: bool,
    _lock: DirectoryLock,
}

impl GgufWriter {
    /// Writes everything but the values of the tensors, which are stored in the order of `tensors`. `records` are the keys.
    ///
    /// # Errors
    /// A file that is there and not to be replaced, that is being written by another process, or that cannot be written.
    pub(super) fn create(
        path: &Path,
        records: &[Vec<u8>],
        tensors: Vec<PlannedTensor>,
        overwrite: bool,
    ) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let failed = |e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
        let lock = files::lock_place(path)?;
        check_place(path, overwrite)?;
        clean_up(path, name).map_err(failed)?;
        let mut header = Vec::new();
        header.extend(b"GGUF");
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((records.len() as u64).to_le_bytes());
        records.iter().for_each(|record| header.extend(record));
        let mut offset = 0u64;
        for tensor in &tensors {
            header.extend(string(&tensor.name));
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| header.extend((*size as u64).to_le_bytes()));
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes()).next_multiple_of(DEFAULT_ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        let beside = path.with_file_name(format!(".{name}.{}.part", files::writer_id()));
        let mut file = BufWriter::with_capacity(1 << 20, files::create_new(&beside).map_err(failed)?);
        let left = tensors.into_iter().rev().collect();
        let written = file.write_all(&header);
        let writer = Self { path: path.to_owned(), beside, file, left, finished: false, _lock: lock };
        written.map_err(failed)?;
        Ok(writer)
    }

    /// Writes the next tensor, which must be `name`.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name, bytes.len() as u64);
        self.put(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// Writes the next tensor, which must be `name`, in pieces: `read` fills each from its place in the tensor.
    ///
    /// # Errors
    /// An error of `read`, or a file that cannot be written.
    pub(super) fn copy(
        &mut self,
        name: &str,
        bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.begin(name, bytes);
        let mut piece = vec![0; bytes.min(COPY_BYTES) as usize];
        for start in (0..bytes).step_by(COPY_BYTES as usize) {
            let piece = &mut piece[..(bytes - start).min(COPY_BYTES) as usize];
            read(start, piece)?;
            self.put(piece)?;
        }
        self.pad(bytes)
    }

    fn begin(&mut self, name: &str, bytes: u64) {
        let next = self.left.pop();
        assert!(
            next.as_ref().is_some_and(|next| next.name == name && next.bytes() == bytes),
            "{next:?} is to be written next, not {bytes} bytes of {name}"
        );
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }

    /// Fills up to the place of the next tensor.
    fn pad(&mut self, bytes: u64) -> Result<()> {
        let padding = bytes.next_multiple_of(DEFAULT_ALIGNMENT) - bytes;
        self.put(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    /// The file cannot be written. One that was there stays as it is.
    pub(super) fn finish(mut self) -> Result<()> {
        assert!(self.left.is_empty(), "{:?} were not written", self.left);
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let renamed =
            written.and_then(|()| files::rename(&self.beside, &self.path)).and_then(|()| files::sync_directory(parent));
        renamed.map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = files::remove_if_there(&self.beside);
        }
    }
}

/// Refuses a path that is no place for a GGUF file.
///
/// # Errors
/// A file that is there and not to be replaced, or a name of another kind.
pub(super) fn check_place(path: &Path, overwrite: bool) -> Result<()> {
    if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("gguf")) {
        return Err(Error::file(path, "must end in .gguf, by which programs know the format"));
    }
    if files::is_dir(path) {
        return Err(Error::file(path, "is a directory; give the name of the file"));
    }
    if files::exists(path) && !overwrite {
        let problem = format!("exists already; choose a new name, or {} to replace it", crate::setting::OVERWRITE);
        return Err(Error::file(path, problem));
    }
    Ok(())
}
