//! A file of a teacher's log-probabilities: the likeliest tokens of each trained token of a data set, as a safetensors file.
//!
//! A row is found by the tokens up to the one that it predicts. So it does not matter in which order examples come, which of them are
//! held out, packed or cut, and a student that reads the data in another way is noticed.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Example;
use super::batches::MicroBatch;
use super::tokenizer::Tokenizer;
use crate::files::{self, File, Fingerprint};
use crate::model::listing::{Entry, RawTensor, TensorInfo};
use crate::model::safetensors_file::read_header;
use crate::quant::format::Float;
use crate::setting::{CHAT_TEMPLATE, DATA, MAX_SEQ_LEN, TEACHER};
use crate::{Error, Result};

/// The kind of file, in its metadata.
pub const FORMAT: &str = "loraine-teacher";
/// The version of its layout.
pub const VERSION: &str = "1";
/// Tokens of all records, one after the other, I32.
pub const INPUT_IDS: &str = "input_ids";
/// The first token of each record and the end of the last one, I64.
pub const RECORD_OFFSETS: &str = "record_offsets";
/// The first row of each record and the end of the last one, I64.
pub const ROW_OFFSETS: &str = "row_offsets";
/// The place in its record of the token that each row predicts, I32.
pub const POSITIONS: &str = "positions";
/// The likeliest tokens of each row, `[rows, k]`, I32; -1 where a row has fewer.
pub const TOKEN_IDS: &str = "token_ids";
/// Their log-probabilities, `[rows, k]`, F16 or F32.
pub const LOGPROBS: &str = "logprobs";
/// No token.
const NO_TOKEN: u32 = u32::MAX;

/// The sources and settings of a teacher's file. They stand in the file's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherFacts {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: String,
    /// Name of the model, or where its log-probabilities came from.
    pub teacher: String,
    /// Fingerprint of the vocabulary, as [`vocabulary_fingerprint`] has it.
    pub vocabulary: String,
    /// Fingerprint of the chat template's text; empty where the data needed none.
    #[serde(default)]
    pub chat_template: String,
    /// Date and time that the template wrote, if it writes one.
    #[serde(default)]
    pub template_date: String,
    /// Longest sequence in tokens.
    #[serde(default)]
    pub max_seq_len: String,
    /// The data.
    #[serde(default)]
    pub data: String,
}

/// The fingerprint of a vocabulary: each token with its id. Records of token ids alone have the number of ids in its place.
pub fn vocabulary_fingerprint(tokenizer: Option<&Tokenizer>, vocab_size: usize) -> String {
    let Some(tokenizer) = tokenizer else { return format!("{vocab_size} ids") };
    let mut fingerprint = Fingerprint::default();
    for id in 0..tokenizer.vocabulary() as u32 {
        let token = tokenizer.token(id).unwrap_or_default();
        fingerprint.add(&(token.len() as u32).to_le_bytes());
        fingerprint.add(token.as_bytes());
    }
    fingerprint.text()
}

/// The places of the trained tokens of an example, which rows of a teacher predict.
pub fn trained_places(example: &Example) -> impl Iterator<Item = usize> + '_ {
    example.trained.iter().enumerate().skip(1).filter(|(_, trained)| **trained).map(|(at, _)| at)
}

/// The number of the tokens up to each place, to find rows by.
fn prefixes(input_ids: &[u32]) -> impl Iterator<Item = u64> + '_ {
    let step = |sum: &mut Fingerprint, id: &u32| {
        sum.add(&id.to_le_bytes());
        Some(sum.number())
    };
    input_ids.iter().scan(Fingerprint::default(), step)
}

/// An open file of a teacher. Its rows are read when a batch needs them.
#[derive(Clone, Debug)]
pub struct TeacherFile {
    /// Its sources and settings.
    pub facts: TeacherFacts,
    /// Tokens of each row.
    pub top_k: usize,
    path: PathBuf,
    token_ids: RawTensor,
    logprobs: TensorInfo,
    /// Rows by the number of the tokens up to the one that they predict.
    rows: HashMap<u64, u32>,
    fingerprint: String,
}

impl TeacherFile {
    /// Opens a file, checks every value, and refuses one for another vocabulary than `vocabulary`, whose ids are below `vocab_size`.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is for another vocabulary.
    pub fn open(path: &Path, vocabulary: &str, vocab_size: usize) -> Result<Self> {
        let mut entries = read_header(path)?;
        let facts = facts(path)?;
        if facts.vocabulary != vocabulary {
            let problem = format!(
                "is of a teacher ({}) with another vocabulary than the student's; distillation needs the same tokens under the same ids",
                facts.teacher
            );
            return Err(Error::file(path, problem));
        }
        let mut tensor = |name: &str, dtype: &str, dimensions: usize| {
            let missing = || Error::field(path, name, "is missing; write the file anew with `loraine distill`");
            let entry = entries.remove(name).ok_or_else(missing)?;
            let found = entry.raw();
            match (found.dtype == dtype || dtype.is_empty()) && found.shape.len() == dimensions {
                true => Ok(entry),
                false => {
                    let problem = format!("has the type {} and the shape {:?}", found.dtype, found.shape);
                    Err(Error::field(path, name, format!("{problem}; it must have {dimensions} dimensions of {dtype}")))
                }
            }
        };
        let words = |entry: Entry| -> Result<Vec<u32>> {
            Ok(entry.raw().read()?.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
        };
        let input_ids = words(tensor(INPUT_IDS, "I32", 1)?)?;
        let positions = words(tensor(POSITIONS, "I32", 1)?)?;
        let mut offsets = |name: &str, end: usize| -> Result<Vec<usize>> {
            let bytes = tensor(name, "I64", 1)?.raw().read()?;
            let numbers: Vec<u64> = bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            let fits = numbers.first() == Some(&0) && numbers.is_sorted() && numbers.last() == Some(&(end as u64));
            let problem = format!("must rise from 0 to {end}");
            if fits {
                Ok(numbers.into_iter().map(|n| n as usize).collect())
            } else {
                Err(Error::field(path, name, problem))
            }
        };
        let record_offsets = offsets(RECORD_OFFSETS, input_ids.len())?;
        let row_offsets = offsets(ROW_OFFSETS, positions.len())?;
        let token_ids = tensor(TOKEN_IDS, "I32", 2)?.raw();
        let logprobs = match tensor(LOGPROBS, "", 2)? {
            Entry::Float(info) if info.dtype != Float::Bf16 => info,
            other => return Err(Error::field(path, other.name(), "must be of the type F16 or F32")),
        };
        let shape = token_ids.shape.clone();
        if shape != logprobs.shape
            || shape[0] != positions.len()
            || shape[1] == 0
            || row_offsets.len() != record_offsets.len()
        {
            let problem = format!(
                "has the shape {shape:?} beside {} positions, {LOGPROBS} of the shape {:?}, and offsets of {} and {} records",
                positions.len(),
                logprobs.shape,
                record_offsets.len() - 1,
                row_offsets.len() - 1
            );
            return Err(Error::field(path, TOKEN_IDS, problem));
        }
        let mut rows = HashMap::with_capacity(positions.len());
        for record in 0..record_offsets.len() - 1 {
            let ids = &input_ids[record_offsets[record]..record_offsets[record + 1]];
            let known: Vec<u64> = prefixes(ids).collect();
            let of_record = row_offsets[record]..row_offsets[record + 1];
            for (row, position) in of_record.clone().zip(&positions[of_record]) {
                let place = known.get(*position as usize);
                let problem =
                    || format!("has {position} for a token of record {}, which has {}", record + 1, ids.len());
                let place = place.ok_or_else(|| Error::field(path, POSITIONS, problem()))?;
                rows.entry(*place).or_insert(row as u32);
            }
        }
        let mut fingerprint = Fingerprint::of(bytemuck::cast_slice(&input_ids));
        fingerprint.add(bytemuck::cast_slice(&positions));
        let top_k = shape[1];
        let mut file =
            Self { facts, top_k, path: path.to_owned(), token_ids, logprobs, rows, fingerprint: String::new() };
        file.check_values(positions.len(), vocab_size, &mut fingerprint)?;
        file.fingerprint = fingerprint.text();
        Ok(file)
    }

    /// Checks the tokens and log-probabilities of all rows, and takes them into the fingerprint.
    fn check_values(&self, rows: usize, vocab_size: usize, fingerprint: &mut Fingerprint) -> Result<()> {
        let step = (1_usize << 18).div_ceil(self.top_k);
        for first in (0..rows).step_by(step) {
            let (ids, logprobs) = self.read_rows(first..rows.min(first + step))?;
            let values = ids.chunks(self.top_k).zip(logprobs.chunks(self.top_k));
            for (row, (ids, logprobs)) in (first..).zip(values) {
                let field =
                    |name: &str, problem: String| Err(Error::field(&self.path, name, format!("row {row} {problem}")));
                if let Some(id) = ids.iter().find(|id| **id != NO_TOKEN && **id as usize >= vocab_size) {
                    return field(TOKEN_IDS, format!("has the token {id}, but the vocabulary has {vocab_size}"));
                }
                let has_token = |(id, logprob): (&u32, &f32)| *id != NO_TOKEN && *logprob > f32::NEG_INFINITY;
                if !ids.iter().zip(logprobs).any(has_token) {
                    return field(TOKEN_IDS, "has no token".to_owned());
                }
                if let Some(value) = logprobs.iter().find(|value| value.is_nan() || **value > 1e-3) {
                    return field(LOGPROBS, format!("has {value}, which is no logarithm of a probability"));
                }
            }
            fingerprint.add(bytemuck::cast_slice(&ids));
            fingerprint.add(bytemuck::cast_slice(&logprobs));
        }
        Ok(())
    }

    /// Fingerprint of everything that training takes from the file.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.token_ids.shape[0]
    }

    /// Checks that there is a row for every trained token of the examples that were read from `source` with a chat template
    /// of the fingerprint `template`.
    ///
    /// # Errors
    /// The first example without one.
    pub fn check_examples(&self, examples: &[Example], source: &Path, template: &str) -> Result<()> {
        for (at, example) in examples.iter().enumerate() {
            let prefixes: Vec<u64> = prefixes(&example.input_ids).collect();
            let Some(place) = trained_places(example).find(|place| !self.rows.contains_key(&prefixes[*place])) else {
                continue;
            };
            let reason = match template != self.facts.chat_template {
                true => {
                    format!("it was written with another chat template; give both commands the same {CHAT_TEMPLATE}")
                }
                false => format!(
                    "it was written from other data ({}), or with other settings of the data; give both commands the same {DATA} and \
                     {MAX_SEQ_LEN} (it has {})",
                    self.facts.data, self.facts.max_seq_len
                ),
            };
            let problem = format!(
                "has no log-probabilities for token {place} of example {} of {}: {reason}",
                at + 1,
                source.display()
            );
            return Err(Error::file(&self.path, problem));
        }
        Ok(())
    }

    /// Adds the rows of an example's labels to a micro-batch that the example was just added to, with the probabilities at
    /// `temperature`, which add up to 1 for each row.
    ///
    /// # Errors
    /// An example that [`Self::check_examples`] refuses, or a file that cannot be read.
    pub fn add_rows(&self, batch: &mut MicroBatch, example: &Example, temperature: f64) -> Result<()> {
        let known: Vec<u64> = prefixes(&example.input_ids).collect();
        let found: Option<Vec<usize>> =
            trained_places(example).map(|place| self.rows.get(&known[place]).map(|row| *row as usize)).collect();
        let missing = || Error::setting(TEACHER, format!("{TEACHER} has no log-probabilities for an example"));
        let found = found.ok_or_else(missing)?;
        for run in found.chunk_by(|a, b| a + 1 == *b) {
            let (ids, logprobs) = self.read_rows(run[0]..run[run.len() - 1] + 1)?;
            for (ids, logprobs) in ids.chunks(self.top_k).zip(logprobs.chunks(self.top_k)) {
                let row = probabilities(ids, logprobs, temperature);
                let free = self.top_k - row.len();
                batch.teacher.ids.extend(row.iter().map(|(id, _)| *id).chain(std::iter::repeat_n(NO_TOKEN, free)));
                let values = row.iter().map(|(_, p)| *p as f32).chain(std::iter::repeat_n(0.0, free));
                batch.teacher.probabilities.extend(values);
            }
        }
        Ok(())
    }

    /// Tokens and log-probabilities of some rows.
    fn read_rows(&self, rows: std::ops::Range<usize>) -> Result<(Vec<u32>, Vec<f32>)> {
        let elements = (rows.start * self.top_k) as u64..(rows.end * self.top_k) as u64;
        let mut bytes = vec![0; 4 * (elements.end - elements.start) as usize];
        self.token_ids.read_piece(4 * elements.start, &mut bytes)?;
        let ids = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        Ok((ids, self.logprobs.read_f32_range(elements)?))
    }
}

/// The tokens of a row with their probabilities at a temperature, which add up to 1, ascending by id.
fn probabilities(ids: &[u32], logprobs: &[f32], temperature: f64) -> Vec<(u32, f64)> {
    let highest = logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logprob: f32| (f64::from(logprob - highest) / temperature).exp();
    let known = ids.iter().zip(logprobs).filter(|(id, logprob)| **id != NO_TOKEN && **logprob > f32::NEG_INFINITY);
    let mut row: Vec<(u32, f64)> = known.map(|(id, logprob)| (*id, weight(*logprob))).collect();
    row.sort_by_key(|(id, _)| *id);
    row.dedup_by_key(|(id, _)| *id);
    let sum: f64 = row.iter().map(|(_, weight)| weight).sum();
    row.iter_mut().for_each(|(_, weight)| *weight /= sum);
    row
}

/// The part of a header that is not about tensors.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    metadata: TeacherFacts,
}

/// The facts in the metadata of a file whose header was found in order.
fn facts(path: &Path) -> Result<TeacherFacts> {
    let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(unreadable)?;
    let len = u64::from_le_bytes(prefix).min(files::len(path).map_err(unreadable)?);
    let mut header = vec![0; len as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let wrong = || Error::file(path, "is no file of a teacher's log-probabilities; `loraine distill` writes one");
    let facts = serde_json::from_slice::<Header>(&header).map_err(|_| wrong())?.metadata;
    match (facts.format.as_str(), facts.version.as_str()) {
        (FORMAT, VERSION) => Ok(facts),
        (FORMAT, other) => {
            Err(Error::file(path, format!("has the version {other} of its format; this program reads {VERSION}")))
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_normalized_at_its_temperature_and_ascends() {
        let row = probabilities(&[9, 2, NO_TOKEN], &[-0.5, -1.5, f32::NEG_INFINITY], 2.0);
        let weight = (-0.5f64).exp();
        let sum = 1.0 + weight;
        assert_eq!(row.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 9]);
        for ((_, p), want) in row.iter().zip([weight / sum, 1.0 / sum]) {
            assert!((p - want).abs() < 1e-12, "{row:?}");
        }
        assert_eq!(probabilities(&[4], &[-3.0], 0.5), [(4, 1.0)]);
    }

    #[test]
    fn the_tokens_up_to_a_place_are_one_number() {
        let of = |ids: &[u32]| prefixes(ids).collect::<Vec<_>>();
        let (long, short) = (of(&[5, 6, 7]), of(&[5, 6]));
        assert_eq!(long[..2], short[..]);
        assert_ne!(of(&[6, 5])[1], short[1]);
    }
}
