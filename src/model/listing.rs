//! The places of tensors in files, by name, and reading from them. Every container of weights is read into this list.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::gguf_blocks::GgmlType;
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
    /// How a GGUF file holds it, where its bytes are not the values of this type and shape one after the other: they are then decoded
    /// as they are read, and `file_offset` is the place of the whole tensor in the file.
    pub(crate) blocks: Option<Blocks>,
    /// How far apart its values lie, where they are some of those of a larger tensor; `file_offset` is then the place of the first.
    pub(crate) strides: Option<Strides>,
}

/// The distances of a tensor's values within a larger one, counted in values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strides {
    /// Values of a row.
    pub columns: u64,
    /// From a row to the next.
    pub row: u64,
    /// From a value of a row to the next.
    pub column: u64,
}

impl Strides {
    /// Fills `buf` with bytes `byte_offset ..` of the tensor's values.
    fn read(&self, info: &TensorInfo, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        let width = info.dtype.bytes();
        let elements = byte_offset / width..(byte_offset + buf.len() as u64).div_ceil(width);
        if elements.is_empty() {
            return Ok(());
        }
        let (first_row, last_row) = (elements.start / self.columns, (elements.end - 1) / self.columns);
        let place = |row: u64, column: u64| row * self.row + column * self.column;
        // Both strides count up: the last value of the last row lies behind all others.
        let begin = place(first_row, 0);
        let end = place(last_row, self.columns - 1) + 1;
        let mut span = vec![0; ((end - begin) * width) as usize];
        read_at(&info.path, &info.name, info.file_offset + begin * width, &mut span)?;
        let mut values = Vec::with_capacity(((elements.end - elements.start) * width) as usize);
        let skipped = (byte_offset - elements.start * width) as usize;
        for element in elements {
            let at = ((place(element / self.columns, element % self.columns) - begin) * width) as usize;
            values.extend_from_slice(&span[at..at + width as usize]);
        }
        buf.copy_from_slice(&values[skipped..skipped + buf.len()]);
        Ok(())
    }
}

/// The values of a tensor in a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Blocks {
    pub kind: GgmlType,
    /// Values of a row.
    pub columns: u64,
    /// The row of the file's tensor that is the first of this one.
    pub first_row: u64,
    /// Rows of a head, where those of each head lie in the order of a rotation of neighboring features.
    pub head: Option<u64>,
    /// Added to every value.
    pub offset: f32,
    /// Where the blocks of MXFP4 are in two tensors, codes and scales.
    pub planes: Option<Planes>,
}

/// The scales beside the codes of MXFP4, as safetensors files hold them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planes {
    /// The file of the scales.
    pub scales: PathBuf,
    /// The place of the first scale of the whole tensor.
    pub scales_offset: u64,
    /// Rows of the whole tensor from one of these to the next.
    pub step: u64,
}

impl Planes {
    /// Rows of the tensor in ggml's blocks: the scale, then the codes, of which a byte has those of values 16 apart. In the files it has
    /// those of neighbors.
    fn rows(&self, blocks: &Blocks, info: &TensorInfo, rows: Range<u64>) -> Result<Vec<u8>> {
        const CODES: u64 = 16;
        let in_row = blocks.columns / blocks.kind.block();
        let first = blocks.first_row + rows.start * self.step;
        let count = rows.end - rows.start;
        let spanned = if count == 0 { 0 } else { (count - 1) * self.step + 1 };
        let mut codes = vec![0; (spanned * in_row * CODES) as usize];
        let mut scales = vec![0; (spanned * in_row) as usize];
        read_at(&info.path, &info.name, info.file_offset + first * in_row * CODES, &mut codes)?;
        read_at(&self.scales, &info.name, self.scales_offset + first * in_row, &mut scales)?;
        let mut out = Vec::with_capacity((count * blocks.row_bytes()) as usize);
        for at in (0..count).flat_map(|row| (0..in_row).map(move |block| row * self.step * in_row + block)) {
            let pairs = &codes[(at * CODES) as usize..][..CODES as usize];
            let code = |value: usize| pairs[value / 2] >> (4 * (value % 2)) & 15;
            out.push(scales[at as usize]);
            out.extend((0..CODES as usize).map(|j| code(j) | code(j + 16) << 4));
        }
        Ok(out)
    }
}

/// The row of a GGUF tensor that transformers has as `row`. Where heads of `head` rows are in the order of a rotation of neighboring
/// features, rows `2 j` and `2 j + 1` of a head in the file are rows `j` and `j + head / 2`.
pub(crate) fn row_in_file(row: usize, head: Option<usize>) -> usize {
    let Some(head) = head else { return row };
    let (start, at, half) = (row / head * head, row % head, head / 2);
    start + 2 * (at % half) + at / half
}

impl Blocks {
    /// The row of the file's tensor with the values of `row`.
    pub(crate) fn row_in_file(&self, row: u64) -> u64 {
        self.first_row + row_in_file(row as usize, self.head.map(|head| head as usize)) as u64
    }

    /// Bytes of a row in the file.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.columns / self.kind.block() * self.kind.block_bytes()
    }

    /// The blocks of `rows` rows as the file holds them, in the order of the tensor.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn packed_rows(&self, info: &TensorInfo, rows: u64) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes();
        let bytes = self.rows(info, 0..rows)?;
        if self.head.is_none() {
            return Ok(bytes);
        }
        let in_file = |row: u64| ((self.row_in_file(row) - self.first_row) * row_bytes) as usize;
        Ok((0..rows).flat_map(|row| &bytes[in_file(row)..][..row_bytes as usize]).copied().collect())
    }

    /// The blocks of a range of rows in the order of the file.
    fn rows(&self, info: &TensorInfo, rows: Range<u64>) -> Result<Vec<u8>> {
        if let Some(planes) = &self.planes {
            return planes.rows(self, info, rows);
        }
        let row_bytes = self.row_bytes();
        let mut bytes = vec![0; ((rows.end - rows.start) * row_bytes) as usize];
        read_at(&info.path, &info.name, info.file_offset + (self.first_row + rows.start) * row_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buf` with bytes `byte_offset ..` of the tensor's values.
    fn read(&self, info: &TensorInfo, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        let (decoded_row, row_bytes) = (self.columns * info.dtype.bytes(), self.row_bytes());
        if buf.is_empty() || decoded_row == 0 {
            return Ok(());
        }
        let end = byte_offset + buf.len() as u64;
        let rows = byte_offset / decoded_row..end.div_ceil(decoded_row);
        // Rows that change places do so within their head, so that whole heads are one range of the file.
        let whole = self.head.unwrap_or(1);
        let span = rows.start / whole * whole..rows.end.next_multiple_of(whole);
        let bytes = self.rows(info, span.clone())?;
        let (mut values, mut halves) = (vec![0.0; self.columns as usize], Vec::new());
        for row in rows {
            let at = ((self.row_in_file(row) - self.first_row - span.start) * row_bytes) as usize;
            let packed = &bytes[at..at + row_bytes as usize];
            let decoded: &[u8] = if info.dtype == Float::F32 {
                self.kind.decode(packed, &mut values);
                if self.offset != 0.0 {
                    values.iter_mut().for_each(|value| *value += self.offset);
                }
                bytemuck::cast_slice(&values)
            } else if self.kind.is_float() {
                packed
            } else {
                // Every value of MXFP4 is one of bf16.
                self.kind.decode(packed, &mut values);
                halves.clear();
                halves.extend(values.iter().map(|value| half::bf16::from_f32(*value).to_bits()));
                bytemuck::cast_slice(&halves)
            };
            let first = row * decoded_row;
            let (from, to) = (byte_offset.max(first), end.min(first + decoded_row));
            buf[(from - byte_offset) as usize..(to - byte_offset) as usize]
                .copy_from_slice(&decoded[(from - first) as usize..(to - first) as usize]);
        }
        Ok(())
    }
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
        match (&self.blocks, &self.strides) {
            (Some(blocks), _) => blocks.read(self, byte_offset, buf),
            (None, Some(strides)) => strides.read(self, byte_offset, buf),
            (None, None) => read_at(&self.path, &self.name, self.file_offset + byte_offset, buf),
        }
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

    /// Fills `buf` with its bytes from `byte_offset` on, which must lie inside it.
    pub(crate) fn read_piece(&self, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        read_at(&self.path, &self.name, self.file_offset + byte_offset, buf)
    }

    /// Reads all its bytes as f32.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
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

    /// This tensor under another name.
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
#[derive(Clone, Debug)]
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
