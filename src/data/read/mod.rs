//! Reads data files of every shape and type into examples, applies the length limit, and reports what became of each record.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::Example;
use super::encode::{Encoded, Encoder, Refusal, Rule};
use super::packing::pack;
use super::records::{self, EXTENSIONS, Place, Records};
pub use super::report::DataReport;
use super::report::{DropReason, LISTED};
use super::settings::{DataSettings, OnLong, Shape};
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::files::{self, File};
use crate::setting::{MAX_SEQ_LEN, ON_LONG};
use crate::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub report: DataReport,
}

/// [`read_with`] with default settings and this `max_seq_len`.
pub fn read(path: &Path, tokenizer: Option<&Tokenizer>, max_seq_len: usize, vocab_size: usize) -> Result<Dataset> {
    read_with(path, tokenizer, &DataSettings { max_seq_len, ..Default::default() }, vocab_size)
}

/// [`read_split_with`] with default settings and this `max_seq_len`.
pub fn read_split(
    dir: &Path,
    split: &str,
    tokenizer: Option<&Tokenizer>,
    max_seq_len: usize,
    vocab_size: usize,
) -> Result<Option<Dataset>> {
    read_split_with(dir, split, tokenizer, &DataSettings { max_seq_len, ..Default::default() }, vocab_size)
}

/// Reads a `.txt`, `.jsonl`, `.json` or `.parquet` file, or the `train.*` of a directory.
///
/// A `.txt` file is encoded as a whole, without special tokens, and cut into sequences. Other files hold records, whose [`Shape`]
/// comes from `settings` or from their fields. Records of `input_ids` need no `tokenizer`. The chat template is searched beside the
/// tokenizer's files. Token ids must be below `vocab_size`.
///
/// # Errors
/// Lists the numbers of refused records: examples without a trained token, assistant turns that do not end in a special token,
/// two begin tokens in a row, and with [`OnLong::Refuse`] examples longer than `settings.max_seq_len`.
pub fn read_with(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Dataset> {
    let max_seq_len = settings.max_seq_len;
    if max_seq_len < 2 {
        let problem = format!("{MAX_SEQ_LEN} is {max_seq_len}; it must be at least 2");
        return Err(Error::setting(MAX_SEQ_LEN, problem));
    }
    let path = data_file(path)?;
    let mut dataset = match is_text(&path) {
        true => read_text(&path, tokenizer, max_seq_len)?,
        false => read_records(&path, tokenizer, settings, vocab_size)?,
    };
    let (examples, report) = (&dataset.examples, &mut dataset.report);
    report.source = path;
    report.kept = examples.len();
    report.tokens = examples.iter().map(|e| e.input_ids.len()).sum();
    report.trained_tokens = examples.iter().map(Example::trained_tokens).sum();
    report.slots = settings.packing.then(|| pack(examples, max_seq_len).len());
    if examples.is_empty() {
        let problem = match report.read {
            0 => "holds no example: it is empty".to_owned(),
            _ => {
                let account = report.to_string();
                let account: Vec<&str> = account.lines().skip(1).map(str::trim).collect();
                format!("leaves no example of {}: {}", report.read, account.join("; "))
            }
        };
        return Err(Error::file(&report.source, problem));
    }
    Ok(dataset)
}

/// Reads `split` (`train`, `valid` or `test`) of a directory, if it exists. The other arguments are those of [`read_with`].
pub fn read_split_with(
    dir: &Path,
    split: &str,
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Option<Dataset>> {
    match split_file(dir, split)? {
        Some(path) => read_with(&path, tokenizer, settings, vocab_size).map(Some),
        None => Ok(None),
    }
}

/// Returns the file itself, or the `train.*` file of a directory.
pub(super) fn data_file(path: &Path) -> Result<PathBuf> {
    if !files::is_dir(path) {
        return Ok(path.to_owned());
    }
    let missing = || Error::file(path, "holds no train.jsonl, train.json, train.parquet or train.txt");
    split_file(path, "train")?.ok_or_else(missing)
}

fn split_file(dir: &Path, split: &str) -> Result<Option<PathBuf>> {
    let file = |extension: &str| Some(dir.join(format!("{split}.{extension}"))).filter(|path| files::is_file(path));
    let mut files = EXTENSIONS.into_iter().chain(["txt"]).filter_map(file);
    match (files.next(), files.next()) {
        (Some(one), Some(two)) => {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(Error::file(dir, format!("holds {} and {}; keep one of them", name(&one), name(&two))))
        }
        (Some(path), None) => Ok(Some(path)),
        (None, _) => match file("csv") {
            Some(other) => Err(Error::file(other, "cannot be read; supported are .txt, .jsonl, .json and .parquet")),
            None => Ok(None),
        },
    }
}

pub(super) fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "txt")
}

/// Opens the records of a file by its extension and reads them one at a time where the format allows it. Lines and rows count
/// from 1.
///
/// # Errors
/// The file cannot be opened, or its extension is not one of [`EXTENSIONS`].
pub(super) fn records(path: &Path) -> Result<(Place, Records)> {
    let place = |unit| Place { path: path.to_owned(), unit };
    let open = || File::open(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")));
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl") => Ok((place("line"), records::lines(path, open()?))),
        Some("json") => match first_character(open()?) {
            Some(b'[') => Ok((place("record"), records::list(path)?)),
            _ => Ok((place("line"), records::lines(path, open()?))),
        },
        #[cfg(not(target_arch = "wasm32"))]
        Some("parquet") => Ok((place("row"), super::parquet_file::rows(path, open()?)?)),
        _ => Err(Error::file(path, "is no data file that can be read; supported are .txt, .jsonl, .json and .parquet")),
    }
}

/// Returns the first byte that is neither white space nor part of a byte order mark.
fn first_character(file: File) -> Option<u8> {
    let bytes = BufReader::new(file).bytes().map_while(Result::<u8, _>::ok);
    bytes.take(1 << 16).find(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte))
}

/// Cuts one text into sequences whose tokens are all trained on.
fn read_text(path: &Path, tokenizer: Option<&Tokenizer>, max_seq_len: usize) -> Result<Dataset> {
    let text = files::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let problem = "holds text, but there is no tokenizer: tokenizer.json is missing";
    let tokenizer = tokenizer.ok_or_else(|| Error::file(path, problem))?;
    let ids = tokenizer.encode(&text, false)?;
    let sequences = ids.chunks(max_seq_len);
    let read = sequences.len();
    let mut report = DataReport { read, longest: ids.len(), ..Default::default() };
    let all_trained = |ids: &[u32]| Example { trained: vec![true; ids.len()], input_ids: ids.to_vec() };
    let examples: Vec<_> = sequences.filter(|ids| ids.len() >= 2).map(all_trained).collect();
    if examples.is_empty() && read == 1 {
        return Err(Error::file(path, "holds one token, but training needs two or more"));
    }
    if examples.len() < read {
        report.drop_record(DropReason::LastToken, read);
    }
    report.shapes = BTreeMap::from([(Shape::Text, read)]);
    Ok(Dataset { examples, report })
}

fn read_records(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Dataset> {
    let (place, records) = records(path)?;
    let encoder = Encoder::new(tokenizer, settings, vocab_size);
    let (mut examples, mut report) = (Vec::new(), DataReport::default());
    let mut refused: BTreeMap<Rule, (Vec<usize>, String)> = BTreeMap::new();
    let (mut too_long, mut ends, mut ends_kept) = (Vec::new(), 0, 0);
    for record in records {
        let (number, record) = record?;
        report.read += 1;
        let (shape, encoded) = match encoder.encode(&record) {
            Ok(encoded) => encoded,
            Err(Refusal { rule: Rule::Readable, detail }) => return Err(place.error(number, detail)),
            Err(Refusal { rule, detail }) => {
                refused.entry(rule).or_insert_with(|| (Vec::new(), detail)).0.push(number);
                continue;
            }
        };
        *report.shapes.entry(shape).or_default() += 1;
        let Some(encoded) = encoded else {
            report.drop_record(DropReason::EmptyText, number);
            continue;
        };
        report.longest = report.longest.max(encoded.example.input_ids.len());
        for note in &encoded.notes {
            *report.notes.entry(note.clone()).or_default() += 1;
        }
        let own_ends = encoded.ends.len();
        match fit(encoded, settings) {
            Fitted::Whole(example) => {
                ends += own_ends;
                ends_kept += own_ends;
                examples.push(example);
            }
            Fitted::TooLong => {
                too_long.push(number);
                report.drop_record(DropReason::TooLong, number);
            }
            Fitted::Cut(example, kept) => {
                ends += own_ends;
                ends_kept += kept;
                report.truncated += 1;
                examples.push(example);
            }
            Fitted::Split(pieces, kept) => {
                ends += own_ends;
                ends_kept += kept;
                report.split += 1;
                examples.extend(pieces);
            }
            Fitted::NothingLeft => report.drop_record(DropReason::NothingTrainedLeft, number),
        }
    }
    let template = encoder.used_template();
    report.chat_template = template.map(|template| template.source().to_owned());
    report.template_date =
        settings.template_date.clone().filter(|_| template.is_some_and(ChatTemplate::writes_the_date));
    refuse(&place, &refused, report.read)?;
    if settings.on_long == OnLong::Refuse && !too_long.is_empty() {
        return Err(Error::file(path, too_long_sentence(&place, &too_long, &report, settings)));
    }
    if ends > 0 && ends_kept == 0 && !examples.is_empty() {
        let problem = "leaves no example its end of turn, so the model would never learn to stop";
        let advice = match settings.raised_limit(report.longest) {
            Some(limit) => format!("raise it to {limit}"),
            None => format!("shorten the examples, or choose {} or split", ON_LONG.is("drop")),
        };
        let problem = format!("cutting to {MAX_SEQ_LEN} {problem}; {advice}");
        return Err(Error::file(path, problem));
    }
    Ok(Dataset { examples, report })
}

/// Outcome of the length limit for one example, with the number of trained end tokens that it keeps.
enum Fitted {
    Whole(Example),
    Cut(Example, usize),
    Split(Vec<Example>, usize),
    TooLong,
    NothingLeft,
}

fn fit(encoded: Encoded, settings: &DataSettings) -> Fitted {
    let Encoded { mut example, ends, .. } = encoded;
    let limit = settings.max_seq_len;
    if example.input_ids.len() <= limit {
        return Fitted::Whole(example);
    }
    match settings.on_long {
        OnLong::Refuse | OnLong::Drop => Fitted::TooLong,
        OnLong::Truncate => {
            example.input_ids.truncate(limit);
            example.trained.truncate(limit);
            match example.trained_tokens() {
                0 => Fitted::NothingLeft,
                _ => Fitted::Cut(example, ends.iter().filter(|&&at| at < limit).count()),
            }
        }
        OnLong::Split => {
            let pieces = example.input_ids.chunks(limit).zip(example.trained.chunks(limit));
            let piece =
                |(ids, trained): (&[u32], &[bool])| Example { input_ids: ids.to_vec(), trained: trained.to_vec() };
            let pieces: Vec<_> = pieces.map(piece).filter(|piece| piece.trained_tokens() > 0).collect();
            match pieces.is_empty() {
                true => Fitted::NothingLeft,
                // No token precedes the first token of a piece, so it cannot be predicted.
                false => Fitted::Split(pieces, ends.iter().filter(|&&at| at % limit != 0).count()),
            }
        }
    }
}

fn refuse(place: &Place, refused: &BTreeMap<Rule, (Vec<usize>, String)>, read: usize) -> Result<()> {
    let mut sentences = Vec::new();
    for (numbers, detail) in refused.values() {
        if let ([number], 1) = (numbers.as_slice(), refused.len()) {
            return Err(place.error(*number, detail));
        }
        let list = place.list(numbers, LISTED);
        sentences
            .push(format!("{} of {read} examples cannot be trained on ({list}); the first {detail}", numbers.len()));
    }
    match sentences.is_empty() {
        true => Ok(()),
        false => Err(Error::file(&place.path, sentences.join("; "))),
    }
}

fn too_long_sentence(place: &Place, numbers: &[usize], report: &DataReport, settings: &DataSettings) -> String {
    let list = place.list(numbers, LISTED);
    let (longest, limit) = (report.longest, settings.max_seq_len);
    let others = format!("{}, drop or split", ON_LONG.is("truncate"));
    let advice = match settings.raised_limit(longest) {
        Some(raised) if raised >= longest => format!("raise {MAX_SEQ_LEN} to {longest}, or choose {others}"),
        Some(raised) => {
            format!(
                "the model takes at most {raised} tokens, so raise {MAX_SEQ_LEN} to {raised} at most, and choose {others}"
            )
        }
        None => format!("the model takes no more, so choose {others}"),
    };
    format!(
        "{} of {} examples are longer than {limit} tokens, the longest has {longest} ({list}); nothing is cut without \
         being asked: {advice}",
        numbers.len(),
        report.read,
    )
}

#[cfg(test)]
mod tests;
