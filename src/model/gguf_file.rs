//! One GGUF file, or a model that is split into several, opened without loading it: the keys and the places of the tensors are read and
//! held against the file's real length. The format: ggml's `docs/gguf.md`.
//!
//! Beyond what ggml checks, no number of a file decides how much memory is asked for: metadata, strings and tensors have limits, and of
//! arrays only type, count and place are kept until they are read.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::gguf_blocks::GgmlType;
use crate::files::{self, File};
use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
/// Bytes of keys and tensor descriptions; the largest published vocabularies take 20 MB.
const MAX_METADATA_BYTES: u64 = 256 << 20;
const MAX_STRING_BYTES: u64 = 64 << 20;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_TENSORS: u64 = 65_536;
const MAX_KEYS: u64 = 65_536;
const MAX_NAME_BYTES: usize = 64;
const MAX_FILES: u64 = 1000;
/// The alignment of tensors where no key gives one.
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;

/// The value of a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GgufValue {
    /// A whole number of any width that is not negative.
    Unsigned(u64),
    /// A whole number below 0.
    Negative(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// A list, which stays in the file.
    Array(GgufArray),
}

/// The place of a list in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufArray {
    pub kind: u32,
    pub count: u64,
    path: PathBuf,
    /// Place of the first element.
    offset: u64,
    /// Bytes of all elements.
    bytes: u64,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufTensor {
    pub name: String,
    pub kind: GgmlType,
    /// Sizes of its dimensions, the outermost first: the file has them the other way round.
    pub shape: Vec<usize>,
    pub path: PathBuf,
    /// Place of its first byte, counted from the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

impl GgufTensor {
    /// Reads bytes `start ..` of the tensor.
    pub(crate) fn read(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        let read = |buffer: &mut [u8]| -> std::io::Result<()> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.offset + start))?;
            file.read_exact(buffer)
        };
        read(buffer).map_err(|e| Error::field(&self.path, &self.name, format!("cannot be read: {e}")))
    }
}

/// The keys and tensors of a GGUF model.
#[derive(Clone, Debug)]
pub(crate) struct GgufFile {
    /// The file, or the first of a split model.
    pub path: PathBuf,
    pub values: BTreeMap<String, GgufValue>,
    /// The keys in their order with the places of their bytes, which have the type and the value too: a copy of the file begins so.
    pub records: Vec<(String, Range<u64>)>,
    /// In the order of the file.
    pub tensors: Vec<GgufTensor>,
}

/// True for the path of a GGUF file, by its extension, if there is a file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && files::is_file(path)
}

impl GgufFile {
    /// Opens a file, and the others of a split model, whose names end in `-00002-of-00003.gguf` and so on.
    ///
    /// # Errors
    /// A file that is missing, cut short, damaged, or of another version or byte order than can be read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut first = read_header(path)?;
        let count = first.values.get("split.count").and_then(unsigned).unwrap_or(0);
        if count <= 1 {
            return Ok(first);
        }
        let number = first.values.get("split.no").and_then(unsigned).unwrap_or(0);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let tail = format!("-{:05}-of-{count:05}.gguf", number + 1);
        let Some(stem) = name.strip_suffix(&tail).filter(|_| count <= MAX_FILES) else {
            let problem =
                format!("is part {} of a model in {count} files, and so must be named NAME{tail}", number + 1);
            return Err(Error::file(path, problem));
        };
        let part = |at: u64| path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", at + 1));
        if number != 0 {
            let problem =
                format!("is part {} of a model in {count} files; give the first, {}", number + 1, part(0).display());
            return Err(Error::file(path, problem));
        }
        for at in 1..count {
            let next = read_header(&part(at))?;
            let same = |key: &str| next.values.get(key).and_then(unsigned);
            if (same("split.no"), same("split.count")) != (Some(at), Some(count)) {
                let problem =
                    format!("is not part {} of {}: split.no and split.count disagree", at + 1, path.display());
                return Err(Error::file(part(at), problem));
            }
            first.tensors.extend(next.tensors);
        }
        let mut names: Vec<&str> = first.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::field(path, twice[0], "is in two parts of the model"));
        }
        let wanted = first.values.get("split.tensors.count").and_then(unsigned);
        if wanted.is_some_and(|wanted| wanted != first.tensors.len() as u64) {
            let problem =
                format!("asks for {} tensors, but the parts hold {}", wanted.unwrap_or(0), first.tensors.len());
            return Err(Error::field(path, "split.tensors.count", problem));
        }
        Ok(first)
    }

    pub(crate) fn error(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::field(&self.path, key, problem)
    }

    /// The bytes of a key with its type and its value.
    pub(crate) fn record(&self, place: &Range<u64>) -> Result<Vec<u8>> {
        let mut input = Input::open(&self.path)?;
        input.seek(place.start).map_err(|e| Error::file(&self.path, format!("cannot be read: {e}")))?;
        let mut bytes = vec![0; (place.end - place.start) as usize];
        input.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(key, "must be a string")),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(number)) => Ok(Some(*number)),
            Some(_) => Err(self.error(key, "must be a whole number that is not negative")),
        }
    }

    /// A finite number.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(GgufValue::Unsigned(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.error(key, "must be a finite number")),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(key, "must be true or false")),
        }
    }

    /// A list of strings. A NUL byte at the end of one, as some writers add, is left out.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key, "strings", |kind| kind == STRING)? else { return Ok(None) };
        let mut input = self.elements(key, array)?;
        let mut texts = Vec::new();
        for _ in 0..array.count {
            texts.push(input.string(key)?);
        }
        Ok(Some(texts))
    }

    /// A list of whole numbers of any width.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let Some(array) = self.array(key, "whole numbers", |kind| matches!(kind, 0..=5 | 7 | 10 | 11))? else {
            return Ok(None);
        };
        let mut input = self.elements(key, array)?;
        let mut numbers = Vec::new();
        for _ in 0..array.count {
            numbers.push(match input.scalar(array.kind, key)? {
                GgufValue::Unsigned(number) => {
                    i64::try_from(number).map_err(|_| self.error(key, format!("holds {number}, which is too large")))?
                }
                GgufValue::Negative(number) => number,
                GgufValue::Bool(flag) => i64::from(flag),
                _ => return Err(self.error(key, "must be a list of whole numbers")),
            });
        }
        Ok(Some(numbers))
    }

    /// A list of f32 numbers.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let Some(array) = self.array(key, "f32 numbers", |kind| kind == F32)? else { return Ok(None) };
        let mut input = self.elements(key, array)?;
        let mut numbers = Vec::new();
        for _ in 0..array.count {
            numbers.push(f32::from_le_bytes(input.bytes()?));
        }
        Ok(Some(numbers))
    }

    fn array(&self, key: &str, of: &str, fits: impl Fn(u32) -> bool) -> Result<Option<&GgufArray>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) if fits(array.kind) => Ok(Some(array)),
            Some(_) => Err(self.error(key, format!("must be a list of {of}"))),
        }
    }

    fn elements(&self, key: &str, array: &GgufArray) -> Result<Input> {
        let mut input = Input::open(&array.path)?;
        input.seek(array.offset).map_err(|e| self.error(key, format!("cannot be read: {e}")))?;
        input.limit = array.offset + array.bytes;
        Ok(input)
    }
}

/// A number of any width, if it is not negative.
fn unsigned(value: &GgufValue) -> Option<u64> {
    match value {
        GgufValue::Unsigned(number) => Some(*number),
        _ => None,
    }
}

const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const F64: u32 = 12;

/// Bytes of a value of fixed size.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4 | 5 | F32 => Some(4),
        10 | 11 | F64 => Some(8),
        _ => None,
    }
}

/// A file that is read from front to back.
struct Input {
    file: BufReader<File>,
    path: PathBuf,
    at: u64,
    /// No byte from here on is read.
    limit: u64,
}

impl Input {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
        let limit = files::len(path).map_err(failed)?;
        let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
        Ok(Self { file, path: path.to_owned(), at: 0, limit })
    }

    fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::file(&self.path, problem)
    }

    fn field(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::field(&self.path, key, problem)
    }

    fn seek(&mut self, to: u64) -> std::io::Result<()> {
        self.file.seek_relative(to as i64 - self.at as i64)?;
        self.at = to;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        if self.limit.saturating_sub(self.at) < buffer.len() as u64 {
            return Err(
                self.error(format!("is cut short, or damaged: what begins at byte {} does not end in it", self.at))
            );
        }
        self.file.read_exact(buffer).map_err(|e| Error::file(&self.path, format!("cannot be read: {e}")))?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A string, `what` for messages.
    fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64()?;
        if length > MAX_STRING_BYTES || length > self.limit.saturating_sub(self.at) {
            return Err(self.field(what, format!("has a string of {length} bytes, more than the file can hold")));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        let mut text = String::from_utf8(bytes).map_err(|_| self.field(what, "has a string that is not UTF-8"))?;
        text.truncate(text.trim_end_matches('\0').len());
        Ok(text)
    }

    fn skip(&mut self, bytes: u64, key: &str) -> Result<()> {
        if bytes > self.limit.saturating_sub(self.at) {
            return Err(self.field(key, format!("has {bytes} bytes of values, more than the file can hold")));
        }
        let to = self.at + bytes;
        self.seek(to).map_err(|e| Error::file(&self.path, format!("cannot be read: {e}")))
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<GgufValue> {
        let signed = |number: i64| match u64::try_from(number) {
            Ok(number) => GgufValue::Unsigned(number),
            Err(_) => GgufValue::Negative(number),
        };
        Ok(match kind {
            0 => GgufValue::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => GgufValue::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => GgufValue::Unsigned(self.u32()?.into()),
            5 => signed(i32::from_le_bytes(self.bytes()?).into()),
            F32 => GgufValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            BOOL => GgufValue::Bool(self.bytes::<1>()? != [0]),
            STRING => GgufValue::Text(self.string(key)?),
            10 => GgufValue::Unsigned(self.u64()?),
            11 => signed(i64::from_le_bytes(self.bytes()?)),
            F64 => GgufValue::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.field(key, format!("has the unknown type {other}"))),
        })
    }

    /// A list: its values are passed over.
    fn array(&mut self, key: &str) -> Result<GgufArray> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let offset = self.at;
        match (kind, width(kind)) {
            (_, Some(width)) => {
                let bytes = count.checked_mul(width);
                let bytes =
                    bytes.ok_or_else(|| self.field(key, format!("has {count} values, more than a file can hold")))?;
                self.skip(bytes, key)?;
            }
            (STRING, None) => {
                if count.checked_mul(8).is_none_or(|least| least > self.limit.saturating_sub(self.at)) {
                    return Err(self.field(key, format!("has {count} strings, more than the file can hold")));
                }
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length, key)?;
                }
            }
            (ARRAY, None) => return Err(self.field(key, "is a list of lists, which GGUF does not allow")),
            (other, None) => return Err(self.field(key, format!("is a list of the unknown type {other}"))),
        }
        Ok(GgufArray { kind, count, path: self.path.clone(), offset, bytes: self.at - offset })
    }
}

fn read_header(path: &Path) -> Result<GgufFile> {
    let mut input = Input::open(path)?;
    let file_len = input.limit;
    if file_len < 24 {
        return Err(input.error(format!("is cut short: {file_len} bytes cannot hold a GGUF header")));
    }
    let magic: [u8; 4] = input.bytes()?;
    if &magic != MAGIC {
        let mut rest = [0; 36];
        let length = rest.len().min(file_len as usize - 4);
        input.fill(&mut rest[..length])?;
        if files::is_lfs_pointer(&[&magic[..], &rest[..length]].concat()) {
            return Err(Error::lfs_pointer(path));
        }
        return Err(input.error("does not begin with GGUF; it is not a GGUF file"));
    }
    match input.u32()? {
        2 | 3 => {}
        0x0200_0000 | 0x0300_0000 => {
            return Err(input.error("is a big-endian GGUF file; convert the model again for little-endian machines"));
        }
        other => return Err(input.error(format!("is GGUF version {other}; versions 2 and 3 are read"))),
    }
    let (tensors, keys) = (input.u64()?, input.u64()?);
    if tensors > MAX_TENSORS || keys > MAX_KEYS {
        let problem = format!("claims {tensors} tensors and {keys} keys; a model has at most {MAX_TENSORS} of each");
        return Err(input.error(problem));
    }
    input.limit = file_len.min(MAX_METADATA_BYTES);
    let mut values = BTreeMap::new();
    let mut records = Vec::new();
    for _ in 0..keys {
        let start = input.at;
        let key = input.string("a key")?;
        if key.is_empty() || key.len() > 1 << 16 {
            return Err(input.error(format!("has a key of {} bytes", key.len())));
        }
        let value = match input.u32()? {
            ARRAY => GgufValue::Array(input.array(&key)?),
            kind => input.scalar(kind, &key)?,
        };
        records.push((key.clone(), start..input.at));
        if values.insert(key.clone(), value).is_some() {
            return Err(input.field(&key, "is there twice"));
        }
    }
    let alignment = alignment(path, &values)?;
    let mut described = Vec::new();
    for _ in 0..tensors {
        described.push(describe(&mut input, alignment)?);
    }
    let data = input.at.next_multiple_of(alignment);
    let tensors = place(path, described, data, file_len)?;
    Ok(GgufFile { path: path.to_owned(), values, records, tensors })
}

fn alignment(path: &Path, values: &BTreeMap<String, GgufValue>) -> Result<u64> {
    match values.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(GgufValue::Unsigned(number)) if number.is_power_of_two() && *number <= MAX_ALIGNMENT => Ok(*number),
        Some(_) => {
            let problem = format!("must be a power of 2 up to {MAX_ALIGNMENT}");
            Err(Error::field(path, "general.alignment", problem))
        }
    }
}

/// Reads one tensor's description; its offset still counts from the start of the data.
fn describe(input: &mut Input, alignment: u64) -> Result<GgufTensor> {
    let name = input.string("a tensor's name")?;
    if name.is_empty() || name.len() >= MAX_NAME_BYTES {
        return Err(input.error(format!("has a tensor with a name of {} bytes; names have 1 to 63", name.len())));
    }
    let count = input.u32()?;
    if count > 4 {
        return Err(input.field(&name, format!("has {count} dimensions, but tensors have at most 4")));
    }
    let mut dims = Vec::new();
    for _ in 0..count {
        dims.push(input.u64()?);
    }
    let kind = input.u32()?;
    let kind = GgmlType::of(kind).map_err(|problem| input.field(&name, problem))?;
    // All sizes are multiplied before anything else: a product that wraps to 0 would pass every later check.
    let elements = dims.iter().try_fold(1u64, |product, size| product.checked_mul(*size)).filter(|n| *n < 1 << 48);
    let elements = elements.filter(|_| dims.iter().all(|size| *size < 1 << 40));
    let elements =
        elements.ok_or_else(|| input.field(&name, format!("has the sizes {dims:?}, which no tensor can have")))?;
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(kind.block()) {
        let problem = format!("has rows of {row}, but {} has blocks of {}", kind.name(), kind.block());
        return Err(input.field(&name, problem));
    }
    let offset = input.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(input.field(&name, format!("begins at byte {offset} of the data, no multiple of {alignment}")));
    }
    let bytes = elements / kind.block() * kind.block_bytes();
    let shape: Option<Vec<usize>> = dims.iter().rev().map(|size| usize::try_from(*size).ok()).collect();
    let shape =
        shape.ok_or_else(|| input.field(&name, format!("has the sizes {dims:?}, too large for this machine")))?;
    Ok(GgufTensor { name, kind, shape, path: input.path.clone(), offset, bytes })
}

/// Makes the offsets count from the start of the file: tensors lie in it and do not overlap. Gaps and any order are allowed.
fn place(path: &Path, mut tensors: Vec<GgufTensor>, data: u64, file_len: u64) -> Result<Vec<GgufTensor>> {
    for tensor in &mut tensors {
        let start = data.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes)).filter(|end| *end <= file_len);
        match (start, end) {
            (Some(start), Some(_)) => tensor.offset = start,
            _ => {
                let problem = format!(
                    "does not end inside the file, which has {file_len} bytes: the file is cut short or damaged"
                );
                return Err(Error::field(path, &tensor.name, problem));
            }
        }
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::field(path, twice[0], "is there twice"));
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    order.sort_by_key(|tensor| tensor.offset);
    if let Some(pair) = order.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        return Err(Error::field(path, &pair[1].name, format!("lies over the tensor `{}`", pair[0].name)));
    }
    Ok(tensors)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;
    use crate::random::{Stream, bits};

    /// A file that is put together by hand, so that every field can be wrong.
    #[derive(Clone)]
    pub(crate) struct Made {
        pub version: u32,
        pub keys: Vec<Vec<u8>>,
        pub tensors: Vec<Vec<u8>>,
        pub data: Vec<u8>,
    }

    pub(crate) fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    pub(crate) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&string(name)[..], &kind.to_le_bytes(), value].concat()
    }

    pub(crate) fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
    }

    pub(crate) fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let dims: Vec<u8> =
            (dims.len() as u32).to_le_bytes().into_iter().chain(dims.iter().flat_map(|d| d.to_le_bytes())).collect();
        [&string(name)[..], &dims, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
    }

    impl Made {
        /// A small file with a value of most types and two tensors.
        fn small() -> Self {
            let texts: Vec<u8> = ["a", "b c", "\u{2581}d"].iter().flat_map(|text| string(text)).collect();
            Self {
                version: 3,
                keys: vec![
                    key("general.architecture", 8, &string("llama")),
                    key("llama.block_count", 4, &3u32.to_le_bytes()),
                    key("llama.rope.freq_base", 6, &5e5f32.to_le_bytes()),
                    key("tokenizer.ggml.add_bos_token", 7, &[1]),
                    key("tokenizer.ggml.tokens", 9, &array(8, 3, &texts)),
                    key("tokenizer.ggml.token_type", 9, &array(5, 3, &[1, 0, 0, 0, 3, 0, 0, 0, 255, 255, 255, 255])),
                ],
                tensors: vec![tensor("output_norm.weight", &[4], 0, 0), tensor("blk.0.attn_q.weight", &[32, 2], 8, 32)],
                data: (0..128).collect(),
            }
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let mut bytes = [&MAGIC[..], &self.version.to_le_bytes()].concat();
            bytes.extend((self.tensors.len() as u64).to_le_bytes());
            bytes.extend((self.keys.len() as u64).to_le_bytes());
            self.keys.iter().chain(&self.tensors).for_each(|part| bytes.extend(part));
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.data);
            bytes
        }

        fn open(&self) -> Result<GgufFile> {
            open(&self.bytes())
        }

        fn message(&self) -> String {
            self.open().unwrap_err().to_string()
        }
    }

    fn open(bytes: &[u8]) -> Result<GgufFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, bytes).unwrap();
        let file = GgufFile::open(&path)?;
        // Every list, and the first bytes of every tensor, so that damage there comes to light too.
        for key in file.values.keys() {
            let _ = (file.texts(key), file.numbers(key), file.floats(key));
        }
        for tensor in &file.tensors {
            tensor.read(0, &mut vec![0; tensor.bytes.min(64) as usize])?;
        }
        Ok(file)
    }

    #[test]
    fn keys_and_tensors_are_read() {
        for version in [2, 3] {
            let made = Made { version, ..Made::small() };
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m.gguf");
            fs::write(&path, made.bytes()).unwrap();
            let file = GgufFile::open(&path).unwrap();
            assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
            assert_eq!(file.number("llama.block_count").unwrap(), Some(3));
            assert_eq!(file.float("llama.rope.freq_base").unwrap(), Some(5e5));
            assert_eq!(file.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
            assert_eq!(file.texts("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "b c", "\u{2581}d"]);
            assert_eq!(file.numbers("tokenizer.ggml.token_type").unwrap().unwrap(), [1, 3, -1]);
            let q = file.tensor("blk.0.attn_q.weight").unwrap();
            assert_eq!((q.kind, &q.shape[..], q.bytes), (GgmlType::Q8_0, &[2, 32][..], 68));
            let mut byte = [0];
            q.read(67, &mut byte).unwrap();
            assert_eq!(byte, [32 + 67]);
            let message = file.texts("tokenizer.ggml.token_type").unwrap_err().to_string();
            assert!(message.contains("`tokenizer.ggml.token_type`: must be a list of strings"), "{message}");
            assert!(file.number("general.architecture").unwrap_err().to_string().contains("whole number"));
        }
    }

    #[test]
    fn every_wrong_field_is_named() {
        let small = Made::small();
        let with_key = |name: &str, kind: u32, value: &[u8]| {
            let mut made = small.clone();
            made.keys.push(key(name, kind, value));
            made.message()
        };
        let with_tensor = |tensor: Vec<u8>| {
            let mut made = small.clone();
            made.tensors[1] = tensor;
            made.message()
        };
        let far = u64::MAX.to_le_bytes();
        let cases = [
            (Made { version: 1, ..small.clone() }.message(), "GGUF version 1; versions 2 and 3"),
            (Made { version: 3 << 24, ..small.clone() }.message(), "big-endian"),
            (with_key("", 4, &[0; 4]), "a key of 0 bytes"),
            (with_key("llama.block_count", 4, &[0; 4]), "is there twice"),
            (with_key("x", 13, &[0; 4]), "`x`: has the unknown type 13"),
            (with_key("x", 8, &far), "has a string of 18446744073709551615 bytes"),
            (with_key("x", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]), "not UTF-8"),
            (with_key("x", 9, &array(9, 1, &[0; 12])), "a list of lists"),
            (with_key("x", 9, &array(13, 1, &[0; 12])), "a list of the unknown type 13"),
            (with_key("x", 9, &array(4, 1 << 62, &[])), "more than a file can hold"),
            (with_key("x", 9, &array(4, 1 << 40, &[])), "more than the file can hold"),
            (with_key("x", 9, &array(8, 1 << 40, &[])), "more than the file can hold"),
            (with_key("general.alignment", 4, &0u32.to_le_bytes()), "must be a power of 2"),
            (with_key("general.alignment", 4, &(1u32 << 31).to_le_bytes()), "must be a power of 2"),
            (with_key("general.alignment", 8, &string("32")), "must be a power of 2"),
            (with_tensor(tensor("output_norm.weight", &[32], 8, 32)), "`output_norm.weight`: is there twice"),
            (with_tensor(tensor(&"x".repeat(64), &[32], 8, 32)), "a name of 64 bytes"),
            (with_tensor(tensor("x", &[32, 1, 1, 1, 1], 8, 32)), "has 5 dimensions"),
            (with_tensor(tensor("x", &[1 << 32, 1 << 32], 0, 32)), "which no tensor can have"),
            (with_tensor(tensor("x", &[1 << 62, 4, 32], 0, 32)), "which no tensor can have"),
            (with_tensor(tensor("x", &[0, u64::MAX], 0, 32)), "which no tensor can have"),
            (with_tensor(tensor("x", &[32], 9, 32)), "`x`: has the type 9 (Q8_1), which is not read"),
            (with_tensor(tensor("x", &[33], 8, 32)), "has rows of 33, but Q8_0 has blocks of 32"),
            (with_tensor(tensor("x", &[32], 8, 33)), "no multiple of 32"),
            (with_tensor(tensor("x", &[32], 8, 128)), "does not end inside the file"),
            (with_tensor(tensor("x", &[32], 8, u64::MAX - 31)), "does not end inside the file"),
            (with_tensor(tensor("x", &[32], 8, 0)), "lies over the tensor"),
        ];
        for (message, says) in cases {
            assert!(message.contains(says) && message.contains("m.gguf: "), "{message}\nlacks {says}");
        }
        assert!(open(b"GGU").unwrap_err().to_string().contains("cut short"));
        assert!(open(&[7; 64]).unwrap_err().to_string().contains("not a GGUF file"));
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
        assert!(open(pointer).unwrap_err().to_string().contains("Git LFS pointer"));
    }

    #[test]
    fn a_damaged_file_is_an_error_or_another_file() {
        let bytes = Made::small().bytes();
        let random = |i: u64, below: usize| (bits(7, Stream::Sampling, 0, i) % below as u64) as usize;
        let mut refused = 0;
        for case in 0..500u64 {
            let mut damaged = bytes.clone();
            match case % 4 {
                0 => damaged.truncate(random(8 * case, bytes.len())),
                1 => damaged[random(8 * case, bytes.len() - 128)] ^= 1 << random(8 * case + 1, 8),
                2 => {
                    let at = random(8 * case, bytes.len() - 136);
                    damaged[at..at + 8].copy_from_slice(&bits(7, Stream::Sampling, 1, case).to_le_bytes());
                }
                _ => {
                    let at = random(8 * case, bytes.len() - 136);
                    damaged[at..at + 8].fill(255);
                }
            }
            refused += usize::from(open(&damaged).is_err());
        }
        assert!(refused > 250, "{refused}");
    }

    #[test]
    fn a_split_model_is_opened_by_its_first_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let part = |number: u16, name: &str| {
            let mut made = Made::small();
            made.keys.push(key("split.no", 2, &number.to_le_bytes()));
            made.keys.push(key("split.count", 2, &2u16.to_le_bytes()));
            made.keys.push(key("split.tensors.count", 5, &2u32.to_le_bytes()));
            made.tensors = vec![tensor(name, &[4], 0, 0)];
            made.bytes()
        };
        let [first, second] = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"].map(path);
        fs::write(&first, part(0, "x")).unwrap();
        assert!(GgufFile::open(&first).unwrap_err().to_string().contains("a-00002-of-00002.gguf: cannot be read"));
        fs::write(&second, part(1, "y")).unwrap();
        let file = GgufFile::open(&first).unwrap();
        assert_eq!(file.tensors.iter().map(|t| t.path.clone()).collect::<Vec<_>>(), [first.clone(), second.clone()]);
        assert!(GgufFile::open(&second).unwrap_err().to_string().contains("give the first, "));
        fs::write(&second, part(1, "x")).unwrap();
        assert!(GgufFile::open(&first).unwrap_err().to_string().contains("in two parts"));
        fs::write(&second, part(0, "y")).unwrap();
        assert!(GgufFile::open(&first).unwrap_err().to_string().contains("is not part 2"));
        fs::rename(&first, path("b.gguf")).unwrap();
        assert!(GgufFile::open(&path("b.gguf")).unwrap_err().to_string().contains("NAME-00001-of-00002.gguf"));
    }
}
