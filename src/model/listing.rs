//! The places of tensors in files, by name, and reading from them. Every container of weights is read into this list.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::files::File;
use crate::quant::format::Float;
use crate::{Error, Result};

/// The place of one tensor of a float type.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The tensor's name in the file.
    pub name: String,
    /// Type of its values in the file.
    pub dtype: Float,
    /// Sizes of its dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub path: PathBuf,
    /// Place of its first byte, counted from the start of the file.
    pub file_offset: u64,
    /// Its size in bytes.
    pub byte_len: u64,
}

impl TensorInfo {
    /// Fills `buf` with the tensor's little-endian bytes from `byte_offset` on: the way to stream a tensor in bounded pieces.
    ///
    /// # Errors
    /// Bytes beyond the tensor's end, or a file that cannot be read.
    pub fn read(&self, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = byte_offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.byte_len);
        if !inside {
            let asked = format!("{} bytes from byte {byte_offset}", buf.len());
            let problem = format!("has {} bytes, but {asked} were asked for", self.byte_len);
            return Err(Error::field(&self.path, &self.name, problem));
        }
        read_at(&self.path, &self.name, self.file_offset + byte_offset, buf)
    }

    /// Reads the whole tensor, widened to f32.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        self.read_f32_range(0..self.byte_len / self.dtype.bytes())
    }

    /// Reads the elements of a range in row-major order, widened to f32.
    ///
    /// # Errors
    /// Elements beyond the tensor's end, or a file that cannot be read.
    pub fn read_f32_range(&self, elements: std::ops::Range<u64>) -> Result<Vec<f32>> {
        let width = self.dtype.bytes();
        let mut bytes = vec![0; ((elements.end - elements.start) * width) as usize];
        self.read(elements.start * width, &mut bytes)?;
        Ok(match self.dtype {
            Float::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Float::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Float::Bf16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        })
    }
}

impl TensorInfo {
    /// True if `same` holds for each pair of elements of both tensors, which have as many, in bounded pieces.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn all_pairs(&self, other: &Self, same: impl Fn(f32, f32) -> bool) -> Result<bool> {
        const PIECE: u64 = 1 << 20;
        let elements = self.byte_len / self.dtype.bytes();
        for start in (0..elements).step_by(PIECE as usize) {
            let piece = start..elements.min(start + PIECE);
            let (ours, theirs) = (self.read_f32_range(piece.clone())?, other.read_f32_range(piece)?);
            if !ours.iter().zip(&theirs).all(|(a, b)| same(*a, *b)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The place alone, to be read byte by byte.
    pub(crate) fn raw(&self) -> RawTensor {
        let dtype = self.dtype.dtype().to_string();
        let (name, path, shape) = (self.name.clone(), self.path.clone(), self.shape.clone());
        RawTensor { name, dtype, shape, path, file_offset: self.file_offset, byte_len: self.byte_len }
    }
}

/// The place of a tensor whose bytes are read as they are, whatever their type.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// The tensor's name in the file.
    pub name: String,
    /// The type as the file spells it.
    pub dtype: String,
    /// Sizes of its dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub path: PathBuf,
    /// Place of its first byte, counted from the start of the file.
    pub file_offset: u64,
    /// Its size in bytes.
    pub byte_len: u64,
}

impl RawTensor {
    /// Reads all its bytes.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.byte_len as usize];
        read_at(&self.path, &self.name, self.file_offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all its bytes as f32.
    pub(crate) fn read_f32(&self) -> Result<Vec<f32>> {
        Ok(self.read()?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

/// A tensor of a file. One that has no float type is refused only when it is used as a float.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    Float(TensorInfo),
    Other(RawTensor),
}

impl Entry {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Float(info) => &info.name,
            Self::Other(raw) => &raw.name,
        }
    }

    /// The same tensor under another name.
    pub(crate) fn renamed(self, name: String) -> Self {
        match self {
            Self::Float(info) => Self::Float(TensorInfo { name, ..info }),
            Self::Other(raw) => Self::Other(RawTensor { name, ..raw }),
        }
    }

    /// The place alone, to be read byte by byte.
    pub(crate) fn raw(&self) -> RawTensor {
        match self {
            Self::Float(info) => info.raw(),
            Self::Other(raw) => raw.clone(),
        }
    }

    /// A range of the tensor's bytes as a vector of its own.
    pub(crate) fn range(&self, name: String, skipped: u64, byte_len: u64) -> Self {
        match self {
            Self::Float(whole) => {
                let (shape, file_offset) =
                    (vec![(byte_len / whole.dtype.bytes()) as usize], whole.file_offset + skipped);
                Self::Float(TensorInfo { name, shape, file_offset, byte_len, ..whole.clone() })
            }
            Self::Other(whole) => {
                let (shape, file_offset) = (vec![byte_len as usize], whole.file_offset + skipped);
                Self::Other(RawTensor { name, shape, file_offset, byte_len, ..whole.clone() })
            }
        }
    }
}

/// The tensors that a model's files hold, by name.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The file that lists the tensors, for messages.
    pub path: PathBuf,
    pub entries: BTreeMap<String, Entry>,
}

fn read_at(path: &Path, name: &str, file_offset: u64, buf: &mut [u8]) -> Result<()> {
    let read = |buf: &mut [u8]| -> std::io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(file_offset))?;
        file.read_exact(buf)
    };
    read(buf).map_err(|e| Error::field(path, name, format!("cannot be read: {e}")))
}
