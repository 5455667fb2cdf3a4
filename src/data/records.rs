//! Files of records: JSON lines, a JSON list, Parquet rows.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::sample::Record;
use crate::files::{self, File};
use crate::{Error, Result};

/// The kinds of files with records, as their names end.
pub const EXTENSIONS: [&str; 3] = ["jsonl", "json", "parquet"];

/// Records with the number that a person finds each by.
pub type Records = Box<dyn Iterator<Item = Result<(usize, Record)>>>;

/// A data file and what it calls its records.
#[derive(Clone, Debug)]
pub struct Place {
    pub path: PathBuf,
    unit: &'static str,
}

impl Place {
    /// An error about one record.
    pub fn error(&self, number: usize, problem: impl std::fmt::Display) -> Error {
        match self.unit {
            "line" => Error::line(&self.path, number, problem),
            unit => Error::file(&self.path, format!("{unit} {number}: {problem}")),
        }
    }

    /// `lines 1, 2 and more`, with at most `listed` numbers.
    pub fn list(&self, numbers: &[usize], listed: usize) -> String {
        let plural = if numbers.len() == 1 { "" } else { "s" };
        let more = if numbers.len() > listed { " and more" } else { "" };
        let numbers: Vec<_> = numbers.iter().take(listed).map(usize::to_string).collect();
        format!("{}{plural} {}{more}", self.unit, numbers.join(", "))
    }
}

/// The records of a file, read as they are asked for where the format allows it. Lines and rows count from 1.
pub fn records(path: &Path) -> Result<(Place, Records)> {
    let place = |unit| Place { path: path.to_owned(), unit };
    let open = || File::open(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")));
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => Ok((place("line"), lines(path, open()?))),
        Some("json") => match first_character(open()?) {
            Some(b'[') => Ok((place("record"), list(path)?)),
            _ => Ok((place("line"), lines(path, open()?))),
        },
        #[cfg(not(target_arch = "wasm32"))]
        Some("parquet") => Ok((place("row"), super::parquet_file::rows(path, open()?)?)),
        _ => Err(Error::file(path, "is no data file that can be read; supported are .txt, .jsonl, .json and .parquet")),
    }
}

/// The first byte that is neither blank nor part of a byte order mark.
fn first_character(file: File) -> Option<u8> {
    let bytes = std::io::Read::bytes(BufReader::new(file)).map_while(Result::<u8, _>::ok);
    bytes.take(1 << 16).find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte))
}

fn lines(path: &Path, file: File) -> Records {
    let path = path.to_owned();
    let parse = move |(index, line): (usize, std::io::Result<String>)| {
        let number = index + 1;
        let error = |problem: String| Some(Err(Error::line(&path, number, problem)));
        let line = match line {
            Ok(line) => line,
            Err(e) => return error(format!("cannot be read: {e}")),
        };
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            return None;
        }
        match serde_json::from_str(line) {
            Ok(Value::Object(record)) => Some(Ok((number, record))),
            Ok(_) => error("must hold one JSON object".into()),
            Err(e) => error(format!("is not valid JSON: {e}")),
        }
    };
    Box::new(BufReader::new(file).lines().enumerate().filter_map(parse))
}

fn list(path: &Path) -> Result<Records> {
    let text = files::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let list: Vec<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|e| Error::file(path, format!("is not valid JSON: {e}")))?;
    let path = path.to_owned();
    Ok(Box::new(list.into_iter().enumerate().map(move |(index, value)| match value {
        Value::Object(record) => Ok((index + 1, record)),
        _ => Err(Error::file(&path, format!("record {}: must be a JSON object", index + 1))),
    })))
}
