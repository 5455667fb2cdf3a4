//! Reads the rows of CSV and TSV files as records of strings.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Cursor, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use csv::{ByteRecord, Reader, ReaderBuilder};
use serde_json::Value;

use super::opened::TextReader;
use super::record::Record;
use super::records::{Place, Records, not_utf8};
use crate::{Error, Result};

/// Delimiters that are looked for in the first line where the usual one is not there.
const OTHERS: [u8; 3] = [b'\t', b';', b'|'];

/// Iterates over the rows below the row of names. A row is numbered by the line that it begins in.
///
/// # Errors
/// The first line is missing, or names two columns alike.
pub(super) fn rows(path: &Path, mut reader: TextReader, usual: u8) -> Result<(Place, Records)> {
    let unreadable = |e: io::Error| Error::file(path, format!("cannot be read: {e}"));
    let mut first = Vec::new();
    reader.read_until(b'\n', &mut first).map_err(unreadable)?;
    let delimiter = delimiter_of(&first, usual);
    let seen = Rc::new(Cell::new(Seen::default()));
    let counted = Counted { reader: Cursor::new(first).chain(reader), held: false, seen: seen.clone() };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(counted);
    let headers = reader.byte_headers().map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map(|name| name.trim().to_owned());
    let names: Vec<String> = headers
        .iter()
        .map(name)
        .collect::<Result<_, _>>()
        .map_err(|e| Error::line(path, 1, not_utf8(e.utf8_error().valid_up_to())))?;
    let mut known = BTreeSet::new();
    if let Some(twice) = names.iter().find(|name| !known.insert(name.as_str())) {
        return Err(Error::line(path, 1, format!("names two columns `{twice}`; the first line must name the columns")));
    }
    let place = Place { path: path.to_owned(), unit: "line" };
    let rows = Rows { path: path.to_owned(), reader, names, seen, last: (1, false), ended: false };
    Ok((place, Box::new(rows)))
}

/// The delimiter that the first line holds outside of quotes: the usual one if it is there at all.
fn delimiter_of(first: &[u8], usual: u8) -> u8 {
    let mut quoted = false;
    let outside: Vec<u8> = first
        .iter()
        .copied()
        .filter(|byte| {
            quoted ^= *byte == b'"';
            !quoted
        })
        .collect();
    let holds = |delimiter: &u8| outside.contains(delimiter);
    match holds(&usual) {
        true => usual,
        false => OTHERS.into_iter().chain([b',']).find(holds).unwrap_or(usual),
    }
}

/// Ends lines by a line feed alone, and counts bytes and quotation marks.
struct Counted<R> {
    reader: R,
    /// True if a carriage return waits for the byte behind it.
    held: bool,
    seen: Rc<Cell<Seen>>,
}

/// What passed a [`Counted`].
#[derive(Clone, Copy, Default)]
struct Seen {
    bytes: u64,
    quotes: usize,
    ends_with_line: bool,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let start = usize::from(self.held).min(buffer.len());
            buffer[..start].fill(b'\r');
            let count = self.reader.read(&mut buffer[start..])?;
            let filled = start + count;
            self.held = false;
            let mut end = 0;
            for at in 0..filled {
                let byte = buffer[at];
                if byte == b'\r' && count > 0 {
                    self.held = at + 1 == filled;
                    if self.held || buffer[at + 1] == b'\n' {
                        continue;
                    }
                }
                buffer[end] = byte;
                end += 1;
            }
            if end > 0 || filled == 0 {
                let mut seen = self.seen.get();
                seen.bytes += end as u64;
                seen.quotes += buffer[..end].iter().filter(|byte| **byte == b'"').count();
                seen.ends_with_line = if end > 0 { buffer[end - 1] == b'\n' } else { seen.ends_with_line };
                self.seen.set(seen);
                return Ok(end);
            }
        }
    }
}

struct Rows<R> {
    path: PathBuf,
    reader: Reader<Counted<R>>,
    names: Vec<String>,
    seen: Rc<Cell<Seen>>,
    /// The last row's line, and whether it went over several lines.
    last: (usize, bool),
    ended: bool,
}

impl<R: Read> Rows<R> {
    /// The line that the row which was read last ends in.
    fn line(&self) -> usize {
        let (position, seen) = (self.reader.position(), self.seen.get());
        // The last line feed belongs to the cell if its quotation mark is never closed.
        let ends_without_line = position.byte() == seen.bytes && (!seen.ends_with_line || seen.quotes % 2 == 1);
        position.line() as usize - usize::from(!ends_without_line && position.line() > 1)
    }

    fn record(&mut self, row: &ByteRecord) -> Result<Record, String> {
        if row.len() != self.names.len() {
            let (has, names) = (row.len(), self.names.len());
            return Err(format!(
                "has {has} cells, but the first line names {names} columns; a cell with the delimiter or a quotation mark in it \
                 stands in quotation marks"
            ));
        }
        let cell = |(name, cell): (&String, &[u8])| match std::str::from_utf8(cell) {
            Ok(text) => Ok((name.clone(), Value::from(text))),
            Err(e) => Err(format!("column `{name}` {}", not_utf8(e.valid_up_to()))),
        };
        self.names.iter().zip(row).map(cell).collect()
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = Result<(usize, Result<Record, String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut row = ByteRecord::new();
        let read = self.reader.read_byte_record(&mut row);
        self.ended = !matches!(read, Ok(true));
        match read {
            Ok(true) => {
                let lines = row.iter().map(|cell| cell.iter().filter(|byte| **byte == b'\n').count()).sum::<usize>();
                let line = self.line().saturating_sub(lines).max(1);
                self.last = (line, lines > 0);
                let record = self.record(&row);
                Some(Ok((line, record)))
            }
            // The parser takes the rest of a file for one cell if a quotation mark is never closed.
            Ok(false) if self.last.1 && self.seen.get().quotes % 2 == 1 => {
                let problem = "has a quotation mark that is never closed, so the rest of the file would be one cell";
                Some(Err(Error::line(&self.path, self.last.0, problem)))
            }
            Ok(false) => None,
            Err(e) => Some(Err(Error::file(&self.path, format!("cannot be read: {e}")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str, usual: u8) -> Result<Vec<(usize, Result<Record, String>)>> {
        let reader: TextReader = Box::new(Cursor::new(text.as_bytes().to_vec()));
        rows(Path::new("t.csv"), reader, usual)?.1.collect()
    }

    fn records(text: &str, usual: u8) -> Vec<(usize, Value)> {
        read(text, usual).unwrap().into_iter().map(|(line, record)| (line, Value::Object(record.unwrap()))).collect()
    }

    #[test]
    fn rows_become_records_named_by_the_first_line() {
        let text =
            "instruction,input, output\r\n\"Add, \"\"please\"\"\",1 2,3\r\n\r\n\"two\nlines\",,h\u{e9}\r\nlast,a,b";
        let expected = [
            (2, json!({"instruction": "Add, \"please\"", "input": "1 2", "output": "3"})),
            (4, json!({"instruction": "two\nlines", "input": "", "output": "h\u{e9}"})),
            (6, json!({"instruction": "last", "input": "a", "output": "b"})),
        ];
        assert_eq!(records(text, b','), expected);
        assert_eq!(records("a\tb\n1,2\t\"3\"\n", b'\t'), [(2, json!({"a": "1,2", "b": "3"}))]);
        assert_eq!(records("a;b\n1,5;2\n", b','), [(2, json!({"a": "1,5", "b": "2"}))]);
        assert_eq!(records("\"a;x\",b\n1,2\n", b','), [(2, json!({"a;x": "1", "b": "2"}))]);
        assert_eq!(records("text\none\n", b','), [(2, json!({"text": "one"}))]);
    }

    #[test]
    fn rows_that_do_not_fit_are_named() {
        let rows = read("a,b\n1,2,3\n4,5\n6\n", b',').unwrap();
        let problems: Vec<_> =
            rows.iter().filter_map(|(line, row)| Some((*line, row.as_ref().err()?.as_str()))).collect();
        assert!(
            matches!(problems[..], [(2, first), (4, second)]
            if first.contains("3 cells, but the first line names 2 columns") && second.contains("has 1 cells")),
            "{problems:?}"
        );
        let twice = read("a,a\n1,2\n", b',').err().unwrap().to_string();
        assert!(twice.contains("line 1: names two columns `a`"), "{twice}");
        let open = read("a,b\n1,2\n3,\"4\n5,6\n7,8\n", b',').unwrap_err().to_string();
        assert!(open.contains("t.csv, line 3: has a quotation mark that is never closed"), "{open}");
    }
}
