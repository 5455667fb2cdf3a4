//! Reads the records of JSON files: objects one after the other, on a line each or over several lines, or one list of objects.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::opened::TextReader;
use super::record::Record;
use crate::{Error, Result};

/// Longest record in bytes. The tokens of a text take some fifty times its memory while it is encoded.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// Records with their numbers in the file: the line, the place in the list, or the row. A record that cannot be read is a sentence; an
/// error ends the file.
pub(super) type Records = Box<dyn Iterator<Item = Result<(usize, Result<Record, String>)>>>;

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

/// Keeps a record from filling the memory while it is read.
fn check_size(bytes: usize) -> io::Result<()> {
    if bytes > MAX_RECORD_BYTES { Err(io::Error::other(too_large())) } else { Ok(()) }
}

/// The problem of a record with more than [`MAX_RECORD_BYTES`].
pub(super) fn too_large() -> String {
    format!("has more than {} MiB, which one example may have; cut it into several", MAX_RECORD_BYTES >> 20)
}

/// Opens the records of a JSON file. Its first character decides: `[` begins one list, whatever the file is called.
///
/// # Errors
/// The file cannot be read.
pub(super) fn json(path: &Path, mut reader: TextReader) -> Result<(Place, Records)> {
    let mut lines_before = 0;
    let first = loop {
        let buffer = reader.fill_buf().map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
        let blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        lines_before += buffer[..blank].iter().filter(|byte| **byte == b'\n').count();
        let (first, ended) = (buffer.get(blank).copied(), buffer.is_empty());
        reader.consume(blank);
        if first.is_some() || ended {
            break first;
        }
    };
    let place = |unit| Place { path: path.to_owned(), unit };
    if first == Some(b'[') {
        reader.consume(1);
        return Ok((place("record"), Box::new(List { path: path.to_owned(), reader, number: 0, ended: false })));
    }
    let lines =
        Lines { path: path.to_owned(), reader, line: lines_before, waiting: Vec::new(), next: None, ended: false };
    let mut lines = Box::new(lines) as Records;
    let (one, two) = (lines.next(), lines.next());
    if let (Some(Ok((_, Ok(record)))), None) = (&one, &two)
        && let Some(list) = only_list(record).or_else(|| table(record))
    {
        let records = list.into_iter().enumerate().map(|(index, value)| Ok((index + 1, object(value))));
        return Ok((place("record"), Box::new(records)));
    }
    Ok((place("line"), Box::new(one.into_iter().chain(two).chain(lines))))
}

/// Fields that hold all records of a file which is one object.
const LISTS: [&str; 7] = ["data", "train", "examples", "instances", "records", "rows", "items"];

/// The list of records of a file that is one object around it.
fn only_list(record: &Record) -> Option<Vec<Value>> {
    let list = LISTS.iter().find_map(|name| record.get(*name)?.as_array())?;
    list.iter().all(Value::is_object).then(|| list.clone())
}

/// The records of a file that is one object around a table as pandas' `to_json` or datasets' `to_dict` writes it: a list or an object of
/// numbered values for each column, or an object for each numbered row.
fn table(record: &Record) -> Option<Vec<Value>> {
    let numbered =
        |fields: &Record| !fields.is_empty() && fields.keys().all(|key| key.bytes().all(|b| b.is_ascii_digit()));
    let is_cell = |value: &Value| !value.is_object() && !value.is_array();
    if let (Some(Value::Array(names)), Some(Value::Array(rows))) = (record.get("columns"), record.get("data")) {
        let names: Vec<String> = names.iter().map(|name| Some(name.as_str()?.to_owned())).collect::<Option<_>>()?;
        let row = |row: &Value| {
            let cells = row.as_array().filter(|cells| cells.len() == names.len())?;
            Some(Value::Object(names.iter().cloned().zip(cells.iter().cloned()).collect()))
        };
        return rows.iter().map(row).collect();
    }
    if numbered(record) && record.values().all(Value::is_object) {
        return Some(record.values().cloned().collect());
    }
    let mut columns: Vec<(&String, Vec<&Value>)> = Vec::new();
    for (name, column) in record {
        columns.push((
            name,
            match column {
                Value::Array(cells) if cells.iter().all(is_cell) => cells.iter().collect(),
                Value::Object(cells) if numbered(cells) => cells.values().collect(),
                _ => return None,
            },
        ));
    }
    // A record of token ids has a list of each kind too.
    let (_, first) = columns.first().filter(|_| columns.len() > 1 && !record.contains_key("input_ids"))?;
    let count = first.len();
    if count == 0 || columns.iter().any(|(_, cells)| cells.len() != count) {
        return None;
    }
    let row = |at: usize| columns.iter().map(|(name, cells)| ((*name).clone(), cells[at].clone())).collect();
    Some((0..count).map(|at| Value::Object(row(at))).collect())
}

fn object(value: Value) -> Result<Record, String> {
    match value {
        Value::Object(record) => Ok(record),
        _ => Err("must be a JSON object".into()),
    }
}

/// Parses the values that stand in `text` one after the other. `NaN` and `Infinity`, which Python writes, are null.
fn values(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    let parse = |text: &str| serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>();
    parse(text).or_else(|error| match numbers_of_python_as_null(text) {
        Some(text) => parse(&text),
        None => Err(error),
    })
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside of strings by `null`; `None` where there are none.
fn numbers_of_python_as_null(text: &str) -> Option<String> {
    let (mut out, mut rest, mut found) = (String::with_capacity(text.len()), text, false);
    while let Some(first) = rest.chars().next() {
        let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word));
        let length = match (first, word) {
            ('"', _) => end_of_string(rest),
            (_, Some(word)) => {
                out.push_str("null");
                found = true;
                rest = &rest[word.len()..];
                continue;
            }
            _ => first.len_utf8(),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    found.then_some(out)
}

/// Number of bytes of the string that `text` begins with, its quotes included.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Writes a parser's error without its position, which counts from the record's beginning, and with the line in the file where the
/// record has several.
fn sentence(error: &serde_json::Error, first_line: usize, record: &str) -> String {
    let of_python = record.trim_start().starts_with("{'");
    let text = short(error);
    if of_python {
        return "is a record as Python shows it, not JSON; write it with json.dumps".to_owned();
    }
    match error.line() {
        0 | 1 => format!("is not valid JSON: {text}, at column {}", error.column()),
        line => format!("is not valid JSON: {text}, at line {} column {}", first_line + line - 1, error.column()),
    }
}

/// Follows brackets and strings of JSON text piece by piece.
#[derive(Clone, Copy, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    fn take(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// Objects on a line each, or over several lines. Blank lines count and are skipped.
struct Lines {
    path: PathBuf,
    reader: TextReader,
    /// Number of lines read.
    line: usize,
    /// Records that were read and not given yet, in reverse.
    waiting: Vec<(usize, Result<Record, String>)>,
    /// A line that was read but belongs to the next record.
    next: Option<String>,
    ended: bool,
}

impl Lines {
    /// The next line that is not blank, with `None` at the end. A line that is not UTF-8 is a sentence.
    fn line(&mut self) -> io::Result<Option<Result<String, String>>> {
        if let Some(line) = self.next.take() {
            return Ok(Some(Ok(line)));
        }
        loop {
            let mut bytes = Vec::new();
            // One byte more, by which a line that is too large is known.
            if self.reader.by_ref().take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            check_size(bytes.len())?;
            self.line += 1;
            match String::from_utf8(bytes) {
                Ok(line) if line.trim_start_matches('\u{feff}').trim().is_empty() => {}
                Ok(line) => return Ok(Some(Ok(line))),
                Err(e) => return Ok(Some(Err(not_utf8(e.utf8_error().valid_up_to())))),
            }
        }
    }

    /// Reads the lines of the next record into `waiting`.
    fn fill(&mut self) -> io::Result<()> {
        let Some(line) = self.line()? else {
            self.ended = true;
            return Ok(());
        };
        let first_line = self.line;
        let mut text = match line {
            Ok(line) => line.trim_start_matches('\u{feff}').to_owned(),
            Err(problem) => {
                self.waiting.push((first_line, Err(problem)));
                return Ok(());
            }
        };
        let mut nesting = Nesting::default();
        text.bytes().for_each(|byte| nesting.take(byte));
        // A string cannot go on in the next line, so a record whose string is open is broken and ends here.
        while nesting.depth > 0 && !nesting.in_string {
            let Some(Ok(line)) = self.line()? else { break };
            let expects_more = text.trim_end().ends_with([',', '[', '{', ':']);
            if !expects_more && line.trim_start().starts_with('{') {
                self.next = Some(line);
                break;
            }
            line.bytes().for_each(|byte| nesting.take(byte));
            text += &line;
            check_size(text.len())?;
        }
        // Lines that were cut out of a list end with its commas.
        match values(text.trim_end()).or_else(|error| values(text.trim_end().trim_end_matches(',')).map_err(|_| error))
        {
            Ok(values) => {
                let record = |value: Value| match value {
                    Value::Object(record) => Ok(record),
                    _ => Err("must hold one JSON object".to_owned()),
                };
                self.waiting.extend(values.into_iter().rev().map(|value| (first_line, record(value))));
            }
            Err(e) => self.waiting.push((first_line, Err(sentence(&e, first_line, &text)))),
        }
        Ok(())
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, Result<Record, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.waiting.is_empty() && !self.ended {
            if let Err(e) = self.fill() {
                self.ended = true;
                return Some(Err(Error::line(&self.path, self.line + 1, format!("cannot be read: {e}"))));
            }
        }
        self.waiting.pop().map(Ok)
    }
}

/// Sentence for bytes that are not UTF-8 from the position `at` of a line on.
pub(super) fn not_utf8(at: usize) -> String {
    format!("cannot be read: byte {} is not UTF-8; save the file in the encoding UTF-8", at + 1)
}

/// The elements of one list, behind its opening bracket.
struct List {
    path: PathBuf,
    reader: TextReader,
    number: usize,
    ended: bool,
}

impl List {
    /// Reads the text of the next element and the byte behind it: a comma or the closing bracket.
    fn element(&mut self) -> io::Result<(Vec<u8>, Option<u8>)> {
        let (mut element, mut nesting) = (Vec::new(), Nesting::default());
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok((element, None));
            }
            for (at, &byte) in buffer.iter().enumerate() {
                if nesting.depth == 0 && !nesting.in_string && (byte == b',' || byte == b']') {
                    element.extend_from_slice(&buffer[..at]);
                    self.reader.consume(at + 1);
                    return Ok((element, Some(byte)));
                }
                nesting.take(byte);
            }
            element.extend_from_slice(buffer);
            check_size(element.len())?;
            let length = buffer.len();
            self.reader.consume(length);
        }
    }

    /// Checks that nothing follows the list.
    fn nothing_follows(&mut self) -> io::Result<bool> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(true);
            }
            if !buffer.iter().all(u8::is_ascii_whitespace) {
                return Ok(false);
            }
            let length = buffer.len();
            self.reader.consume(length);
        }
    }

    fn next_record(&mut self) -> Result<Option<Result<Record, String>>> {
        let path = self.path.clone();
        let unreadable = |e: io::Error| Error::file(&path, format!("cannot be read: {e}"));
        let (bytes, end) = self.element().map_err(unreadable)?;
        let number = self.number + 1;
        let not_json = |problem: &dyn std::fmt::Display| format!("is not valid JSON: record {number}: {problem}");
        if end == Some(b']') {
            self.ended = true;
            if !self.nothing_follows().map_err(unreadable)? {
                return Err(Error::file(&path, "is not valid JSON: more text follows its list"));
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| Error::file(&path, not_json(&"is not UTF-8")))?;
        if end.is_none() {
            return Err(Error::file(&path, not_json(&"the file ends before the list does")));
        }
        if text.trim().is_empty() && self.ended && number == 1 {
            return Ok(None);
        }
        let values = values(text.trim()).map_err(|e| Error::file(&path, not_json(&short(&e))))?;
        let [value] = <[Value; 1]>::try_from(values)
            .map_err(|_| Error::file(&path, not_json(&"one value is expected between two commas")))?;
        self.number = number;
        Ok(Some(object(value)))
    }
}

/// A parser's error without its position.
fn short(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(text, _)| text.to_owned())
}

impl Iterator for List {
    type Item = Result<(usize, Result<Record, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.next_record() {
            Ok(record) => record.map(|record| Ok((self.number, record))),
            Err(e) => {
                self.ended = true;
                Some(Err(e))
            }
        }
    }
}
