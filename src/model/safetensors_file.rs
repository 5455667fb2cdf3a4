//! One safetensors file, opened without loading it: the header is read and held against the file's real length.
//!
//! The safetensors crate has a reader for headers too. It is not used here: it names no tensor in most of its refusals, and it holds
//! offsets as `usize`, so that in a browser, where that has 32 bits, it refuses files of 4 GiB and more.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::json_fields::parse_object;
use super::listing::{Entry, RawTensor, TensorInfo};
use crate::files::{self, File};
use crate::quant::format::Float;
use crate::{Error, Result};

/// The format's own limit on the header's length.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads and checks the header of `path`: every tensor's bytes lie inside the file, touch the next one's, and match its
/// type and shape.
pub(crate) fn read_header(path: &Path) -> Result<BTreeMap<String, Entry>> {
    let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let file_len = files::len(path).map_err(unreadable)?;
    let mut prefix = [0; 8];
    if file_len < 8 {
        return Err(Error::file(path, format!("is cut short: {file_len} bytes cannot hold a safetensors header")));
    }
    file.read_exact(&mut prefix).map_err(unreadable)?;
    let header_len = u64::from_le_bytes(prefix);
    if header_len > MAX_HEADER_BYTES {
        let mut rest = vec![0; 56.min(file_len as usize - 8)];
        file.read_exact(&mut rest).map_err(unreadable)?;
        if files::is_lfs_pointer(&[&prefix[..], &rest].concat()) {
            return Err(Error::lfs_pointer(path));
        }
    }
    if header_len > MAX_HEADER_BYTES {
        let problem = format!("claims a header of {header_len} bytes, above the limit of {MAX_HEADER_BYTES}");
        return Err(Error::file(path, format!("{problem}; it is not a safetensors file")));
    }
    let data_start = header_len + 8;
    if data_start > file_len {
        let problem = format!("is cut short: its header ends at byte {data_start}, the file at byte {file_len}");
        return Err(Error::file(path, problem));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header = String::from_utf8(header).map_err(|_| Error::file(path, "has a header that is not UTF-8"))?;

    let mut entries = BTreeMap::new();
    let mut ranges = Vec::new();
    for (name, value) in parse_object(path, &header)?.iter().filter(|(name, _)| *name != "__metadata__") {
        let (entry, range) = entry(path, name, value, data_start, file_len)?;
        ranges.push((range, name.clone()));
        entries.insert(name.clone(), entry);
    }
    check_coverage(path, ranges, data_start, file_len)?;
    Ok(entries)
}

fn entry(path: &Path, name: &str, value: &Value, data_start: u64, file_len: u64) -> Result<(Entry, (u64, u64))> {
    let error = |problem: String| Error::field(path, name, problem);
    let numbers = |key: &str| -> Option<Vec<u64>> { value.get(key)?.as_array()?.iter().map(Value::as_u64).collect() };
    let dtype = value.get("dtype").and_then(Value::as_str).ok_or_else(|| error("has no dtype".into()))?;
    let shape = numbers("shape").ok_or_else(|| error("has no shape, a list of whole numbers".into()))?;
    let Some([begin, end]) = numbers("data_offsets").and_then(|o| <[u64; 2]>::try_from(o).ok()) else {
        return Err(error("has no data_offsets, a list of two whole numbers".into()));
    };
    let bits = bits_of(dtype).ok_or_else(|| error(format!("has the unknown dtype `{dtype}`")))?;
    let byte_len = shape
        .iter()
        .try_fold(bits, |product: u64, size| product.checked_mul(*size))
        .filter(|bits| bits.is_multiple_of(8))
        .map(|bits| bits / 8)
        .ok_or_else(|| error(format!("has the shape {shape:?}, which no {dtype} tensor can have")))?;
    if end.checked_sub(begin) != Some(byte_len) {
        let problem = format!("has data_offsets {begin}..{end}, but {dtype} {shape:?} takes {byte_len} bytes");
        return Err(error(problem));
    }
    if end > file_len - data_start {
        let there = file_len - data_start;
        return Err(error(format!("ends at data byte {end}, but the file has {there}: it is cut short or damaged")));
    }
    let shape = shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>();
    let shape: Vec<usize> = shape.map_err(|_| error("is too large for this machine's address space".into()))?;
    let Some(dtype) = float_of(dtype) else {
        let (name, dtype, path) = (name.to_owned(), dtype.to_owned(), path.to_owned());
        let raw = RawTensor { name, dtype, shape, path, file_offset: data_start + begin, byte_len };
        return Ok((Entry::Other(raw), (begin, end)));
    };
    let (name, path) = (name.to_owned(), path.to_owned());
    let info =
        TensorInfo { name, dtype, shape, path, file_offset: data_start + begin, byte_len, blocks: None, strides: None };
    Ok((Entry::Float(info), (begin, end)))
}

/// The tensors must cover the data without overlap or hole: the format demands it, so that no bytes hide in a file.
fn check_coverage(path: &Path, mut ranges: Vec<((u64, u64), String)>, data_start: u64, file_len: u64) -> Result<()> {
    ranges.sort();
    let mut covered = 0;
    for ((begin, end), name) in ranges {
        if begin < covered {
            return Err(Error::field(path, name, format!("overlaps the tensor before it, at data byte {begin}")));
        }
        if begin > covered {
            return Err(Error::field(path, name, format!("leaves {} unused bytes before it", begin - covered)));
        }
        covered = end;
    }
    let trailing = file_len - data_start - covered;
    if trailing > 0 {
        return Err(Error::file(path, format!("has {trailing} bytes after its last tensor; it is damaged")));
    }
    Ok(())
}

/// The float type that a header calls `dtype`, if a weight can be of it.
fn float_of(dtype: &str) -> Option<Float> {
    match dtype {
        "F32" => Some(Float::F32),
        "F16" => Some(Float::F16),
        "BF16" => Some(Float::Bf16),
        _ => None,
    }
}

fn bits_of(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E5M2FNUZ" | "F8_E4M3FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The bytes of a file with this header and `data_len` zero bytes of data.
    pub(crate) fn file_bytes(header: &str, data_len: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data_len, 0);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.safetensors");
        std::fs::write(&path, bytes).unwrap();
        read_header(&path).expect_err("a damaged file was accepted").to_string()
    }

    #[test]
    fn damaged_and_hostile_files_are_refused_by_name() {
        let tensor = |dtype: &str, shape: &str, begin: u64, end: u64| {
            format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
        };
        let one = |dtype, shape, begin, end| format!(r#"{{"w":{}}}"#, tensor(dtype, shape, begin, end));
        let two = |a: String, b: String| format!(r#"{{"v":{a},"w":{b}}}"#);
        let cases: [(Vec<u8>, &str); 14] = [
            (vec![1, 2, 3], "cut short"),
            (u64::MAX.to_le_bytes().to_vec(), "above the limit"),
            (1000u64.to_le_bytes().to_vec(), "cut short"),
            (file_bytes("not json", 0), "not valid JSON"),
            (file_bytes("[]", 0), "one JSON object"),
            (file_bytes(&one("F32", "[2,2]", 0, 16), 12), "`w`: ends at data byte 16"),
            (file_bytes(&one("F32", "[2,2]", 0, 16), 20), "4 bytes after its last tensor"),
            (file_bytes(&one("F32", "[2,2]", 0, 8), 8), "`w`: has data_offsets"),
            (file_bytes(&one("F32", "[2,2]", 16, 0), 16), "`w`: has data_offsets"),
            (file_bytes(&one("F32", "[9223372036854775807,2]", 0, 16), 16), "`w`: has the shape"),
            (file_bytes(&one("F32", "[-1]", 0, 16), 16), "`w`: has no shape"),
            (file_bytes(&one("Q4", "[4]", 0, 16), 16), "unknown dtype `Q4`"),
            (file_bytes(&two(tensor("F32", "[2]", 0, 8), tensor("F32", "[2]", 4, 12)), 12), "`w`: overlaps"),
            (file_bytes(&two(tensor("F32", "[2]", 0, 8), tensor("F32", "[2]", 12, 20)), 20), "`w`: leaves 4 unused"),
        ];
        for (bytes, says) in cases {
            let message = message(&bytes);
            assert!(message.contains("bad.safetensors") && message.contains(says), "{message:?} lacks {says:?}");
        }
    }

    #[test]
    fn sixteen_bit_tensors_widen_and_pieces_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let header = r#"{"__metadata__":{"format":"pt"},"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
            "b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},
            "i":{"dtype":"I32","shape":[1],"data_offsets":[6,10]}}"#;
        let mut bytes = file_bytes(header, 10);
        let data = bytes.len() - 10;
        bytes[data..data + 6].copy_from_slice(&[0x00, 0x3c, 0x00, 0xc0, 0x40, 0x40]);
        std::fs::write(&path, bytes).unwrap();
        let entries = read_header(&path).unwrap();
        let (Entry::Float(h), Entry::Float(b)) = (&entries["h"], &entries["b"]) else { panic!("{entries:?}") };
        assert_eq!((h.read_f32().unwrap(), b.read_f32().unwrap()), (vec![1.0, -2.0], vec![3.0]));
        let Entry::Other(i) = &entries["i"] else { panic!("{entries:?}") };
        assert_eq!((i.dtype.as_str(), i.read().unwrap()), ("I32", vec![0; 4]));
        let mut piece = [0; 2];
        h.read(2, &mut piece).unwrap();
        assert_eq!(piece, [0x00, 0xc0]);
        assert!(h.read(3, &mut piece).unwrap_err().to_string().contains("`h`: has 4 bytes"));
        assert!(h.read(u64::MAX, &mut piece).is_err());
    }
}
