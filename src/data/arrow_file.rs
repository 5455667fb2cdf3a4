//! Reads the rows of an Arrow file as records: the stream of record batches that `save_to_disk` of Python's datasets writes, or the
//! same stream in the file format that random access needs (`ARROW1`).
//!
//! The format is that of <https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{ArrowError, DataType, FieldRef, TimeUnit};
use serde_json::Value;

use super::record::Record;
use super::records::Records;
use crate::panics::caught;
use crate::{Error, Result};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;
/// The first and last bytes of the file format, which holds a stream between them and a footer.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";
/// Bytes before the stream of the file format, and behind its footer: the footer's length and the magic.
const FILE_HEAD: u64 = 8;
const FILE_TAIL: u64 = 10;

/// Iterates over the rows of a file, counted from 1. Nested lists and structs become JSON lists and objects.
pub(super) fn rows(path: &Path, file: File) -> Result<Records> {
    let stream = stream_of(file).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let batches = Batches { stream, decoder: StreamDecoder::new(), piece: Buffer::default() };
    Ok(Box::new(Rows { path: path.to_owned(), batches, batch: None, next: 0, number: 0, ended: false }))
}

/// The bytes of the stream in a file, without what the file format has around it.
fn stream_of(mut file: File) -> std::io::Result<std::io::Take<File>> {
    let length = file.metadata()?.len();
    let mut magic = [0; FILE_MAGIC.len()];
    let framed = length >= FILE_HEAD + FILE_TAIL && file.read_exact(&mut magic).is_ok() && magic == *FILE_MAGIC;
    if !framed {
        file.seek(SeekFrom::Start(0))?;
        return Ok(file.take(length));
    }
    let mut footer = [0; 4];
    file.seek(SeekFrom::Start(length - FILE_TAIL))?;
    file.read_exact(&mut footer)?;
    file.seek(SeekFrom::Start(FILE_HEAD))?;
    let around = FILE_HEAD + FILE_TAIL + u64::from(u32::from_le_bytes(footer));
    Ok(file.take(length.saturating_sub(around)))
}

/// Decodes a stream piece by piece, so that a length in a damaged file claims no more memory than the file has bytes.
struct Batches {
    stream: std::io::Take<File>,
    decoder: StreamDecoder,
    piece: Buffer,
}

impl Batches {
    fn next(&mut self) -> Result<Option<RecordBatch>, String> {
        loop {
            while !self.piece.is_empty() {
                let decoded = caught(|| self.decoder.decode(&mut self.piece));
                let decoded = decoded.map_err(|_| "its contents contradict each other".to_owned())?;
                if let Some(batch) = decoded.map_err(|e| sentence(&e))? {
                    return Ok(Some(batch));
                }
            }
            let mut bytes = Vec::with_capacity(PIECE);
            self.stream.by_ref().take(PIECE as u64).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
            if bytes.is_empty() {
                self.decoder.finish().map_err(|_| "it ends within a batch of rows".to_owned())?;
                return match self.decoder.schema() {
                    Some(_) => Ok(None),
                    None => Err("it has no schema".to_owned()),
                };
            }
            self.piece = Buffer::from_vec(bytes);
        }
    }
}

/// An error of the decoder, with what helps where it is known.
fn sentence(error: &ArrowError) -> String {
    match error.to_string() {
        text if text.contains("decompression requires") => {
            "its columns are compressed, which save_to_disk does not do; save the data again with datasets' save_to_disk or \
             to_parquet"
                .to_owned()
        }
        text => text,
    }
}

struct Rows {
    path: PathBuf,
    batches: Batches,
    batch: Option<RecordBatch>,
    /// The next row of the batch.
    next: usize,
    /// Number of rows given.
    number: usize,
    ended: bool,
}

impl Rows {
    fn row(&mut self) -> Result<Option<Record>, String> {
        loop {
            if let Some(batch) = &self.batch
                && self.next < batch.num_rows()
            {
                self.next += 1;
                let at = self.next - 1;
                let record = caught(|| record(batch, at));
                return record.unwrap_or_else(|_| Err("its contents contradict each other".to_owned())).map(Some);
            }
            self.batch = self.batches.next()?;
            self.next = 0;
            if self.batch.is_none() {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<(usize, Result<Record, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.row();
        self.ended = !matches!(row, Ok(Some(_)));
        match row {
            Ok(Some(record)) => {
                self.number += 1;
                Some(Ok((self.number, Ok(record))))
            }
            Ok(None) => None,
            Err(problem) if self.number == 0 => {
                Some(Err(Error::file(&self.path, format!("is not an Arrow file that can be read: {problem}"))))
            }
            Err(problem) => Some(Err(Error::file(&self.path, format!("row {}: {problem}", self.number + 1)))),
        }
    }
}

fn record(batch: &RecordBatch, at: usize) -> Result<Record, String> {
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns());
    fields.map(|(field, column)| Ok((field.name().clone(), value(column.as_ref(), at, field.name())?))).collect()
}

/// The value of a row of a column. Dates and times are strings, as in a Parquet file; bytes that are no text are null.
fn value(array: &dyn Array, at: usize, column: &str) -> Result<Value, String> {
    if array.is_null(at) {
        return Ok(Value::Null);
    }
    let list = |elements: &dyn Array| -> Result<Value, String> {
        (0..elements.len()).map(|at| value(elements, at, column)).collect::<Result<Vec<_>, _>>().map(Value::Array)
    };
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map_or(Value::Null, Into::into);
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(at).into(),
        DataType::Utf8 => array.as_string::<i32>().value(at).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(at).into(),
        DataType::Utf8View => array.as_string_view().value(at).into(),
        DataType::Binary => text(array.as_binary::<i32>().value(at)),
        DataType::LargeBinary => text(array.as_binary::<i64>().value(at)),
        DataType::BinaryView => text(array.as_binary_view().value(at)),
        DataType::FixedSizeBinary(_) => text(array.as_fixed_size_binary().value(at)),
        DataType::List(_) => list(&array.as_list::<i32>().value(at))?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(at))?,
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(at))?,
        DataType::ListView(_) => list(&array.as_list_view::<i32>().value(at))?,
        DataType::LargeListView(_) => list(&array.as_list_view::<i64>().value(at))?,
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let field = |(field, values): (&FieldRef, &ArrayRef)| {
                Ok((field.name().clone(), value(values.as_ref(), at, column)?))
            };
            Value::Object(columns.map(field).collect::<Result<_, String>>()?)
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(at);
            let (keys, values) = (entries.column(0), entries.column(1));
            let entry = |at| match value(keys.as_ref(), at, column)? {
                Value::String(key) => Ok((key, value(values.as_ref(), at, column)?)),
                _ => Err(format!("the map `{column}` must have strings as keys")),
            };
            Value::Object((0..entries.len()).map(entry).collect::<Result<_, String>>()?)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = value(dictionary.keys(), at, column)?.as_u64().and_then(|key| usize::try_from(key).ok());
            let key = key.filter(|key| *key < dictionary.values().len());
            let key = key.ok_or_else(|| format!("the column `{column}` names a value that its dictionary lacks"))?;
            value(dictionary.values().as_ref(), key, column)?
        }
        kind => match number(array, at).or_else(|| written(array, at)) {
            Some(value) => value,
            None => return Err(format!("the column `{column}` has the type {kind}, which is not read; leave it out")),
        },
    })
}

fn number(array: &dyn Array, at: usize) -> Option<Value> {
    Some(match array.data_type() {
        DataType::Int8 => array.as_primitive::<Int8Type>().value(at).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(at).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(at).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(at).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(at).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(at).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(at).into(),
        DataType::Float16 => array.as_primitive::<Float16Type>().value(at).to_f32().into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(at).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(at).into(),
        _ => return None,
    })
}

/// A date, a time or a decimal number as text.
fn written(array: &dyn Array, at: usize) -> Option<Value> {
    fn shown<T: ToString>(value: Option<T>) -> Value {
        value.map_or(Value::Null, |value| value.to_string().into())
    }
    Some(match array.data_type() {
        DataType::Date32 => shown(array.as_primitive::<Date32Type>().value_as_date(at)),
        DataType::Date64 => shown(array.as_primitive::<Date64Type>().value_as_date(at)),
        DataType::Time32(TimeUnit::Second) => shown(array.as_primitive::<Time32SecondType>().value_as_time(at)),
        DataType::Time32(_) => shown(array.as_primitive::<Time32MillisecondType>().value_as_time(at)),
        DataType::Time64(TimeUnit::Nanosecond) => shown(array.as_primitive::<Time64NanosecondType>().value_as_time(at)),
        DataType::Time64(_) => shown(array.as_primitive::<Time64MicrosecondType>().value_as_time(at)),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => shown(array.as_primitive::<TimestampSecondType>().value_as_datetime(at)),
            TimeUnit::Millisecond => shown(array.as_primitive::<TimestampMillisecondType>().value_as_datetime(at)),
            TimeUnit::Microsecond => shown(array.as_primitive::<TimestampMicrosecondType>().value_as_datetime(at)),
            TimeUnit::Nanosecond => shown(array.as_primitive::<TimestampNanosecondType>().value_as_datetime(at)),
        },
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(at).into(),
        DataType::Decimal256(..) => array.as_primitive::<Decimal256Type>().value_as_string(at).into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::damage::errors_of_damaged;

    fn fixture(name: &str) -> PathBuf {
        Path::new("tests/fixtures/arrow").join(name)
    }

    fn read(path: &Path) -> Result<Vec<(usize, Record)>> {
        rows(path, File::open(path).unwrap())?
            .map(|row| row.map(|(number, record)| (number, record.unwrap())))
            .collect()
    }

    /// The JSON lines beside the files hold what datasets itself gives for each row.
    #[test]
    fn every_type_of_column_has_the_value_of_datasets() {
        let lines = std::fs::read_to_string(fixture("types.jsonl")).unwrap();
        let expected: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for name in ["types.arrow", "types_file.arrow"] {
            let records = read(&fixture(name)).unwrap();
            assert_eq!(records.len(), expected.len());
            for ((number, record), expected) in records.iter().zip(&expected) {
                assert_eq!(&Value::Object(record.clone()), expected, "row {number} of {name}");
            }
        }
    }

    #[test]
    fn batches_of_a_file_follow_one_another() {
        let records = read(&fixture("saved/train/data-00000-of-00002.arrow")).unwrap();
        let numbers: Vec<usize> = records.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        let expected = json!([{"role": "user", "content": "caf\u{e9} \u{1f600} 1", "name": null},
            {"role": "assistant", "content": "b 1", "name": "n"}]);
        assert_eq!(records[1].1["messages"], expected);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let problem = |name: &str| read(&fixture(name)).unwrap_err().to_string();
        assert!(problem("compressed.arrow").contains("columns are compressed"), "{}", problem("compressed.arrow"));
        assert!(
            problem("union.arrow").contains("the column `one_of` has the type Union"),
            "{}",
            problem("union.arrow")
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.arrow");
        let whole = std::fs::read(fixture("types.arrow")).unwrap();
        for (bytes, says) in [
            (&b""[..], "it has no schema"),
            (&whole[..whole.len() / 2], "it ends within a batch"),
            (b"{\"text\": \"no Arrow file at all, but JSON\"}", "is not an Arrow file that can be read"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let problem = read(&path).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let files = ["types.arrow", "types_file.arrow", "saved/train/data-00000-of-00002.arrow"].map(fixture);
        let errors = errors_of_damaged(&files, 300, |path| read(path).is_err());
        assert!(errors > 300, "only {errors} of 900 damaged files were errors");
    }
}
