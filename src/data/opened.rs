//! Opens a data file as text: its kind by its name, decompressed, without a byte order mark, in UTF-8.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::files::File;
use crate::{Error, Result};

/// Data files by how they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// One text.
    Text,
    /// JSON objects, in a list or one after the other.
    Json,
    /// Rows below a row of names. The delimiter is that of the name's extension, and may be another in the file.
    Table {
        delimiter: u8,
    },
    Parquet,
    /// The stream of record batches that `save_to_disk` of Python's datasets writes.
    Arrow,
}

/// Extensions by kind, in the order in which messages list them.
const EXTENSIONS: [(&str, FileKind); 12] = [
    ("jsonl", FileKind::Json),
    ("ndjson", FileKind::Json),
    ("jsonlines", FileKind::Json),
    ("json", FileKind::Json),
    ("csv", FileKind::Table { delimiter: b',' }),
    ("tsv", FileKind::Table { delimiter: b'\t' }),
    ("tab", FileKind::Table { delimiter: b'\t' }),
    ("parquet", FileKind::Parquet),
    ("txt", FileKind::Text),
    ("text", FileKind::Text),
    ("md", FileKind::Text),
    ("arrow", FileKind::Arrow),
];
const COMPRESSED: [&str; 4] = [".gz", ".gzip", ".zst", ".zstd"];

/// Sentence for a file whose name has none of the extensions.
pub(super) const SUPPORTED: &str = "is not a data file that can be read; supported are .jsonl, .json, .csv, .tsv, .parquet, .arrow and .txt, also as .gz or .zst";

/// A file's name without a compression's extension, in lower case.
pub(super) fn plain_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match COMPRESSED.iter().find_map(|end| name.strip_suffix(end)) {
        Some(inner) => inner.to_owned(),
        None => name,
    }
}

/// The kind of a file by its name, in any case of letters; `None` for other files.
pub(super) fn kind_of(path: &Path) -> Option<FileKind> {
    let name = path.file_name()?.to_str()?;
    let inner = plain_name(name);
    let (stem, extension) = inner.rsplit_once('.')?;
    let (_, kind) = EXTENSIONS.into_iter().find(|(known, _)| *known == extension)?;
    let compressed = inner.len() < name.len();
    let packed_table = compressed && matches!(kind, FileKind::Parquet | FileKind::Arrow);
    (!stem.is_empty() && !packed_table).then_some(kind)
}

/// Opens a file that is read from its raw bytes.
pub(super) fn raw(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))
}

/// Text in UTF-8, a piece at a time.
pub(super) type TextReader = Box<dyn BufRead>;

/// Bytes at a file's beginning that tell formats apart.
const HEAD: usize = 64;

/// Opens a file of text, JSON or a table. gzip and zstd are recognized by their first bytes, whatever the name says, and so is UTF-16.
///
/// # Errors
/// The file cannot be read, or its first bytes are those of another format, which the message names.
pub(super) fn text(path: &Path) -> Result<TextReader> {
    let unreadable = |e: io::Error| Error::file(path, format!("cannot be read: {e}"));
    let (head, reader) = peek(BufReader::with_capacity(1 << 16, raw(path)?)).map_err(unreadable)?;
    let decompressed: Option<TextReader> = match &head[..] {
        [0x1f, 0x8b, ..] => Some(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(reader)))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Box::new(BufReader::with_capacity(1 << 16, ZstdFrames::new(reader)))),
        _ => return as_text(path, &head, reader),
    };
    let Some(decompressed) = decompressed else { return Err(Error::file(path, SUPPORTED)) };
    let (head, reader) = peek(decompressed).map_err(unreadable)?;
    as_text(path, &head, reader)
}

/// A reader with its first bytes put back.
type Peeked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Reads the first bytes and puts them back.
fn peek<R: BufRead>(mut reader: R) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::with_capacity(HEAD);
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(reader)))
}

fn as_text(path: &Path, head: &[u8], mut reader: impl BufRead + 'static) -> Result<TextReader> {
    if let Some(problem) = other_format(head) {
        return Err(Error::file(path, problem));
    }
    let unreadable = |e: io::Error| Error::file(path, format!("cannot be read: {e}"));
    // Bytes of the mark, and whether the lower byte of a unit stands first.
    let utf_16 = match head {
        [0xff, 0xfe, ..] => Some((2, true)),
        [0xfe, 0xff, ..] => Some((2, false)),
        [first, 0, second, 0, ..] if *first != 0 && *second != 0 => Some((0, true)),
        [0, first, 0, second, ..] if *first != 0 && *second != 0 => Some((0, false)),
        _ => None,
    };
    if let Some((mark, low_first)) = utf_16 {
        let unit = if low_first { u16::from_le_bytes } else { u16::from_be_bytes };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(unreadable)?;
        let units = bytes[mark..].chunks(2).map(|pair| unit([pair[0], pair.get(1).copied().unwrap_or_default()]));
        let text: Option<String> = char::decode_utf16(units).collect::<Result<_, _>>().ok();
        let text = text.ok_or_else(|| Error::file(path, "is not text in UTF-16, as its first bytes say"))?;
        return Ok(Box::new(Cursor::new(text.into_bytes())));
    }
    if head.starts_with(&[0xef, 0xbb, 0xbf]) {
        reader.read_exact(&mut [0; 3]).map_err(unreadable)?;
    }
    Ok(Box::new(reader))
}

/// A sentence about a file that some first bytes show to be of another format than text.
fn other_format(head: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 8] = [
        (b"PAR1", "holds Parquet data; name it .parquet"),
        (b"PK\x03\x04", "is a ZIP archive or an Excel workbook; unpack it, or save its table as CSV"),
        (b"\xd0\xcf\x11\xe0", "is an Excel workbook or another Office file; save its table as CSV"),
        (b"version https://git-lfs", "is a pointer of Git LFS, not the data itself; `git lfs pull` gets the data"),
        (b"%PDF", "is a PDF; save its text as .txt"),
        (b"BZh", "is compressed with bzip2; decompress it, or use gzip or zstd"),
        (b"\xfd7zXZ", "is compressed with xz; decompress it, or use gzip or zstd"),
        (b"ARROW1", "holds an Arrow file; name it .arrow"),
    ];
    known.into_iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, problem)| problem)
}

/// Decodes the frames of a zstd file one after the other.
struct ZstdFrames<R: BufRead> {
    state: Frames<R>,
}

enum Frames<R: BufRead> {
    Between(R),
    Inside(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    /// Only while the state changes, and after an error.
    Gone,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(reader: R) -> Self {
        Self { state: Frames::Between(reader) }
    }
}

fn damaged(problem: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its zstd data is damaged: {problem}"))
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, Frames::Gone) {
                Frames::Gone => return Ok(0),
                Frames::Between(mut reader) => {
                    if reader.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    self.state = Frames::Inside(Box::new(StreamingDecoder::new(reader).map_err(damaged)?));
                }
                Frames::Inside(mut decoder) => {
                    let count = decoder.read(buffer).map_err(damaged)?;
                    if count > 0 || buffer.is_empty() {
                        self.state = Frames::Inside(decoder);
                        return Ok(count);
                    }
                    let (reader, frame) = decoder.into_parts();
                    if frame.get_checksum_from_data().is_some_and(|sum| frame.get_calculated_checksum() != Some(sum)) {
                        return Err(damaged("its checksum differs"));
                    }
                    self.state = Frames::Between(reader);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut content = String::new();
        let mut reader = text(&path).map_err(|e| e.to_string())?;
        reader.read_to_string(&mut content).map_err(|e| e.to_string())?;
        Ok(content)
    }

    #[test]
    fn names_tell_the_kind_in_any_case_and_compression() {
        let kind = |name: &str| kind_of(Path::new(name));
        let json = Some(FileKind::Json);
        assert_eq!(["a.jsonl", "A.JSON", "b/c.ndjson.gz", "x.y.Json.ZST"].map(kind), [json; 4]);
        assert_eq!(kind("A.CSV.gz"), Some(FileKind::Table { delimiter: b',' }));
        assert_eq!(kind("a.Tsv"), Some(FileKind::Table { delimiter: b'\t' }));
        assert_eq!((kind("a.parquet"), kind("a.TXT.gz")), (Some(FileKind::Parquet), Some(FileKind::Text)));
        assert_eq!(["a.parquet.gz", "json", ".json", "a.xlsx", "a.gz", "a"].map(kind), [None; 6]);
    }

    #[test]
    fn marks_and_encodings_of_windows_leave_no_trace() {
        let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        let text = "h\u{e9}, \u{1f600}\n";
        assert_eq!(read("a.txt", text.as_bytes()).unwrap(), text);
        let marked = format!("\u{feff}{text}");
        assert_eq!(read("a.txt", marked.as_bytes()).unwrap(), text);
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            assert_eq!(read("a.txt", &utf_16(&marked, bytes)).unwrap(), text);
            assert_eq!(read("a.txt", &utf_16("plain", bytes)).unwrap(), "plain");
        }
        assert_eq!(read("a.txt", b"").unwrap(), "");
        assert!(read("a.txt", &[0xff, 0xfe, 0x00, 0xd8]).unwrap_err().contains("UTF-16"));
    }

    #[test]
    fn compressed_files_are_read_whatever_their_name() {
        let gzip = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &str| {
            ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
        };
        for name in ["a.jsonl.gz", "a.jsonl"] {
            assert_eq!(read(name, &[gzip("one "), gzip("two")].concat()).unwrap(), "one two");
            assert_eq!(read(name, &[zstd("\u{feff}one "), zstd("two")].concat()).unwrap(), "one two");
        }
        let (mut cut, mut flipped) = (gzip("some text"), zstd("some text"));
        cut.truncate(12);
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        assert!(read("a.txt.gz", &cut).is_err() && read("a.txt.zst", &flipped).is_err());
    }

    #[test]
    fn other_formats_are_named() {
        for (bytes, says) in [
            (b"PAR1....".as_slice(), "name it .parquet"),
            (b"PK\x03\x04...", "save its table as CSV"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"BZh9", "bzip2"),
        ] {
            let message = read("a.jsonl", bytes).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
