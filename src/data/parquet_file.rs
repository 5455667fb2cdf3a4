//! Reads the rows of a Parquet file as records.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::record::Record;
use super::records::Records;
use crate::panics::caught;
use crate::{Error, Result};

/// Iterates over the rows of a file, counted from 1. Nested lists and structs become JSON lists and objects.
pub(super) fn rows(path: &Path, file: File) -> Result<Records> {
    let broken = |e: &dyn std::fmt::Display| Error::file(path, format!("is not a Parquet file that can be read: {e}"));
    let opened = guarded(|| {
        let reader = SerializedFileReader::new(file)?;
        let columns = reader.metadata().file_metadata().schema_descr().num_columns();
        Ok((reader, columns))
    });
    let (reader, columns) = opened.map_err(|e| broken(&e))?;
    refuse_bombs(&reader).map_err(|problem| Error::file(path, problem))?;
    if columns == 0 {
        return Err(broken(&"it has no columns"));
    }
    let mut rows = guarded(|| Ok(reader.into_iter())).map_err(|e| broken(&e))?;
    let (path, mut number, mut ended) = (path.to_owned(), 0, false);
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        number += 1;
        let row = guarded(|| rows.next().transpose()).and_then(|row| row.map(|row| record(&row)).transpose());
        ended = !matches!(row, Ok(Some(_)));
        match row {
            Ok(record) => record.map(|record| Ok((number, Ok(record)))),
            Err(problem) => Some(Err(Error::file(&path, format!("row {number}: {problem}")))),
        }
    })))
}

/// A column is decompressed in pieces that may be as large as the column. Data of large columns does not shrink so far.
const UNSUSPICIOUS_BYTES: i64 = 64 << 20;
const MOST_SHRUNK: i64 = 200;

fn refuse_bombs(reader: &SerializedFileReader<File>) -> Result<(), String> {
    for column in reader.metadata().row_groups().iter().flat_map(|group| group.columns()) {
        let (whole, stored) = (column.uncompressed_size(), column.compressed_size());
        if whole > UNSUSPICIOUS_BYTES && whole / stored.max(1) > MOST_SHRUNK {
            let name = column.column_path().string();
            return Err(format!("its column `{name}` grows from {stored} to {whole} bytes; it is not read"));
        }
    }
    Ok(())
}

/// The parquet crate panics on some damaged files; such a panic becomes an ordinary error.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match caught(read) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its contents contradict each other".into()),
    }
}

fn record(row: &Row) -> Result<Record, String> {
    row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field, name)?))).collect()
}

fn value(field: &Field, column: &str) -> Result<Value, String> {
    let list = |elements: &[Field]| elements.iter().map(|e| value(e, column)).collect::<Result<Vec<_>, _>>();
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => (*flag).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float(n) => (*n).into(),
        Field::Double(n) => (*n).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => Value::Null,
        },
        Field::Group(row) => Value::Object(record(row)?),
        Field::ListInternal(elements) => Value::Array(list(elements.elements())?),
        Field::MapInternal(entries) => {
            let mut object = Map::new();
            for (key, entry) in entries.entries() {
                let Field::Str(key) = key else {
                    return Err(format!("the map `{column}` must have strings as keys"));
                };
                object.insert(key.clone(), value(entry, column)?);
            }
            Value::Object(object)
        }
        Field::Float16(_)
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => field.to_string().into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::damage::errors_of_damaged;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new("tests/fixtures/parquet").join(name)
    }

    fn read(path: &Path) -> Result<Vec<(usize, Record)>> {
        rows(path, File::open(path).unwrap())?
            .map(|row| row.map(|(number, record)| (number, record.unwrap())))
            .collect()
    }

    #[test]
    fn every_codec_gives_the_nested_records_back() {
        for codec in ["none", "snappy", "zstd", "gzip", "lz4"] {
            let records = read(&fixture(&format!("chat_{codec}.parquet"))).unwrap();
            assert_eq!(records.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
            let expected = json!({"messages": [{"role": "system", "content": "be kind", "name": null},
                {"role": "user", "content": "caf\u{e9} \u{1f600}", "name": "n"},
                {"role": "assistant", "content": "b b", "name": null}], "score": null});
            assert_eq!(Value::Object(records[1].1.clone()), expected, "{codec}");
            assert_eq!(records[2].1["messages"], json!([]), "{codec}");
        }
        let tokens = read(&fixture("tokens.parquet")).unwrap();
        assert_eq!(Value::Object(tokens[0].1.clone()), json!({"input_ids": [0, 2, 3], "labels": [-100, 2, 3]}));
        assert_eq!(read(&fixture("texts.parquet")).unwrap()[1].1["text"], "b");
    }

    #[test]
    fn a_column_that_grows_out_of_all_proportion_is_not_read() {
        use parquet::basic::{Compression, Encoding, ZstdLevel};
        use parquet::data_type::{ByteArray, ByteArrayType};
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        use std::sync::Arc;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bomb.parquet");
        let schema = parquet::schema::parser::parse_message_type("message m { required binary text (UTF8); }").unwrap();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::PLAIN)
            .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None);
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties.build())).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(vec![b'a'; 100 << 20])], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let problem = rows(&path, File::open(&path).unwrap()).err().unwrap().to_string();
        assert!(problem.contains("its column `text` grows from") && problem.contains("it is not read"), "{problem}");
    }

    #[test]
    fn damaged_files_are_errors_and_never_panics() {
        let files = ["chat_none.parquet", "chat_snappy.parquet", "tokens.parquet"].map(fixture);
        let errors = errors_of_damaged(&files, 150, |path| read(path).is_err());
        assert!(errors > 200, "only {errors} of 450 damaged files were errors");
    }
}
