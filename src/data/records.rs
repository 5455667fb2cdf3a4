//! Reads the records of JSON files: one object per line, or one list of objects.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::sample::Record;
use crate::files::{self, File};
use crate::{Error, Result};

/// Extensions of files that hold records.
pub(super) const EXTENSIONS: [&str; 3] = ["jsonl", "json", "parquet"];

/// Records with their numbers in the file: the line, the place in the list, or the row.
pub(super) type Records = Box<dyn Iterator<Item = Result<(usize, Record)>>>;

/// A data file, and the word for its records in messages.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub path: PathBuf,
    /// `line`, `record` or `row`.
    pub unit: &'static str,
}

impl Place {
    /// Makes an error about one record.
    pub(super) fn error(&self, number: usize, problem: impl std::fmt::Display) -> Error {
        match self.unit {
            "line" => Error::line(&self.path, number, problem),
            unit => Error::file(&self.path, format!("{unit} {number}: {problem}")),
        }
    }

    /// Formats record numbers as `lines 1, 2 and more`, with at most `listed` numbers.
    pub(super) fn list(&self, numbers: &[usize], listed: usize) -> String {
        let plural = if numbers.len() == 1 { "" } else { "s" };
        let more = if numbers.len() > listed { " and more" } else { "" };
        let numbers: Vec<_> = numbers.iter().take(listed).map(usize::to_string).collect();
        format!("{}{plural} {}{more}", self.unit, numbers.join(", "))
    }
}

/// Iterates over the objects of a JSON lines file, numbered from 1. Blank lines count and are skipped.
pub(super) fn lines(path: &Path, file: File) -> Records {
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

/// Iterates over the objects of a JSON list, numbered from 1.
///
/// # Errors
/// The file cannot be read or is not a JSON list.
pub(super) fn list(path: &Path) -> Result<Records> {
    let text = files::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let list: Vec<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|e| Error::file(path, format!("is not valid JSON: {e}")))?;
    let path = path.to_owned();
    Ok(Box::new(list.into_iter().enumerate().map(move |(index, value)| match value {
        Value::Object(record) => Ok((index + 1, record)),
        _ => Err(Error::file(&path, format!("record {}: must be a JSON object", index + 1))),
    })))
}
