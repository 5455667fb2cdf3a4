//! Log-probabilities that a server returned beside its answers: records whose field `logprobs` is that of OpenAI's protocol, as vLLM and
//! llama.cpp give it too.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Example;
use super::columns::check_names;
use super::encode::{Encoded, Encoder, Refusal, Rule};
use super::opened::kind_of;
use super::read::reading::open;
use super::record::Record;
use super::report::DataReport;
use super::settings::DataSettings;
use super::teacher::trained_places;
use super::tokenizer::Tokenizer;
use crate::{Error, Result, files};

/// The field of a record with the log-probabilities of its answer.
pub const FIELD: &str = "logprobs";

/// A logarithm of a probability may be above 0 by rounding, but not by more.
const ROUNDING: f64 = 1e-2;

/// Answers with log-probabilities.
#[derive(Debug)]
pub struct Answers {
    /// The examples, in the order of the files.
    pub examples: Vec<Example>,
    /// For each trained token of the examples the likeliest tokens with their log-probabilities.
    pub rows: Vec<Vec<(u32, f32)>>,
    /// The chat template and the date that it wrote, under the names of a data report.
    pub report: DataReport,
}

/// Reads records with log-probabilities. The trained tokens of each record must be the tokens of its log-probabilities, one by one; only
/// the end of a turn may have none: there the answer ended, and that token is taken as certain.
///
/// # Errors
/// The first record that cannot be read or aligned, with the token.
pub fn read(sources: &[PathBuf], tokenizer: &Tokenizer, settings: &DataSettings, vocab_size: usize) -> Result<Answers> {
    check_names(settings)?;
    let encoder = Encoder::new(Some(tokenizer), settings, vocab_size);
    let vocabulary = Vocabulary::of(tokenizer, vocab_size);
    let mut answers = Answers { examples: Vec::new(), rows: Vec::new(), report: DataReport::default() };
    for path in sources {
        let kind = kind_of(path).filter(|_| files::is_file(path));
        let kind = kind.ok_or_else(|| Error::file(path, "is no file of records; take .jsonl, .json or .parquet"))?;
        let (place, records) = open(path, kind)?;
        for record in records {
            let (number, record) = record?;
            answers.add(&encoder, &vocabulary, record).map_err(|problem| place.error(number, problem))?;
        }
    }
    if answers.examples.is_empty() {
        return Err(Error::file(sources.first().map_or(Path::new(""), PathBuf::as_path), "holds no record"));
    }
    if let Some(template) = encoder.used_template() {
        answers.report.template_fingerprint = template.fingerprint();
        answers.report.template_date = settings.template_date.clone().filter(|_| template.writes_the_date());
    }
    Ok(answers)
}

impl Answers {
    fn add(
        &mut self,
        encoder: &Encoder<'_>,
        vocabulary: &Vocabulary<'_>,
        record: Result<Record, String>,
    ) -> Result<(), String> {
        let record = record?;
        let found = record.get(FIELD).filter(|value| !value.is_null());
        let missing =
            || format!("has no `{FIELD}`; ask the server for them (\"logprobs\": true, \"top_logprobs\": 20)");
        let entries = entries(found.ok_or_else(missing)?)?;
        let encoded = encoder.encode(&record).map_err(|Refusal { rule, detail }| match rule {
            Rule::Setup => detail,
            _ => format!("the record {detail}"),
        })?;
        let (_, Some(encoded)) = encoded else { return Err("holds an empty text".to_owned()) };
        self.rows.extend(aligned(&encoded, &entries, vocabulary)?);
        self.examples.push(encoded.example);
        Ok(())
    }
}

/// The tokens of an answer: `content` of a chat, or the list itself.
fn entries(value: &Value) -> Result<Vec<&Value>, String> {
    let list = value.get("content").unwrap_or(value);
    match list.as_array() {
        Some(list) if !list.is_empty() => Ok(list.iter().collect()),
        _ => Err(format!(
            "`{FIELD}` must be an object whose `content` is the list of the answer's tokens, as chat answers have it"
        )),
    }
}

/// The row of each trained token.
fn aligned(encoded: &Encoded, entries: &[&Value], vocabulary: &Vocabulary<'_>) -> Result<Vec<Vec<(u32, f32)>>, String> {
    let ids = &encoded.example.input_ids;
    let places: Vec<usize> = trained_places(&encoded.example).collect();
    let mut rows = Vec::with_capacity(places.len());
    for (at, entry) in entries.iter().enumerate() {
        let number = at + 1;
        let Some(place) = places.get(at) else {
            let problem = format!("`{FIELD}` has {} tokens, but the record trains {}", entries.len(), places.len());
            return Err(format!("{problem}: token {number} ({}) has no place", shown(entry)));
        };
        let own = ids[*place];
        if !vocabulary.is(entry, own) {
            return Err(format!(
                "token {number} of the answer is {:?} ({own}), but `{FIELD}` has {} there: the answer was tokenized in another way, or \
                 the vocabulary is another one",
                vocabulary.tokenizer.token(own).unwrap_or_default(),
                shown(entry)
            ));
        }
        rows.push(
            row(entry, own, vocabulary).map_err(|problem| format!("token {number} ({}): {problem}", shown(entry)))?,
        );
    }
    // The template may write more after the end of the turn.
    let ends = |place: &&usize| encoded.ends.last().is_some_and(|end| *place >= end);
    if let Some(next) = places.get(entries.len()).filter(|next| !ends(next)) {
        let token = vocabulary.tokenizer.token(ids[*next]).unwrap_or_default();
        let problem =
            format!("`{FIELD}` ends after {} tokens, before token {} of the answer", entries.len(), entries.len() + 1);
        return Err(format!("{problem}, {token:?} ({})", ids[*next]));
    }
    rows.extend(places.iter().skip(entries.len()).map(|place| vec![(ids[*place], 0.0)]));
    Ok(rows)
}

/// The likeliest tokens at a place, with the answer's own among them.
fn row(entry: &Value, own: u32, vocabulary: &Vocabulary<'_>) -> Result<Vec<(u32, f32)>, String> {
    let likeliest = entry.get("top_logprobs").and_then(Value::as_array).filter(|list| !list.is_empty());
    let missing = "has no `top_logprobs`; ask the server for them (\"top_logprobs\": 20)";
    let mut row: Vec<(u32, f32)> = Vec::new();
    for other in likeliest.ok_or(missing)? {
        let unknown = || format!("the vocabulary has no token {} of its `top_logprobs`", shown(other));
        let id = vocabulary.id(other).ok_or_else(unknown)?;
        if !row.iter().any(|(known, _)| *known == id) {
            row.push((id, logprob(other)?));
        }
    }
    if !row.iter().any(|(known, _)| *known == own) {
        row.push((own, logprob(entry)?));
    }
    let sum: f64 = row.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
    if sum > 1.0 + ROUNDING || sum <= 0.0 {
        return Err(format!("its probabilities add up to {sum:.3}"));
    }
    row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok(row)
}

fn logprob(entry: &Value) -> Result<f32, String> {
    let value = entry.get("logprob").and_then(Value::as_f64).filter(|value| *value <= ROUNDING);
    let problem = || format!("{} has no `logprob`, a number up to 0", shown(entry));
    value.map(|value| value.min(0.0) as f32).ok_or_else(problem)
}

/// A token as a message shows it.
fn shown(entry: &Value) -> String {
    entry.get("token").unwrap_or(entry).to_string()
}

/// The tokens of a vocabulary by their bytes.
struct Vocabulary<'a> {
    tokenizer: &'a Tokenizer,
    size: usize,
    ids: HashMap<Vec<u8>, u32>,
    bytes: Vec<Vec<u8>>,
}

impl<'a> Vocabulary<'a> {
    fn of(tokenizer: &'a Tokenizer, vocab_size: usize) -> Self {
        let size = tokenizer.vocabulary().min(vocab_size);
        let bytes: Vec<Vec<u8>> = (0..size as u32).map(|id| tokenizer.token_bytes(id).unwrap_or_default()).collect();
        let mut ids = HashMap::with_capacity(size);
        for (id, bytes) in (0..).zip(&bytes) {
            ids.entry(bytes.clone()).or_insert(id);
        }
        Self { tokenizer, size, ids, bytes }
    }

    /// The id that an entry names, as llama.cpp (`id`) and vLLM (`token_id:7`) do.
    fn named(&self, entry: &Value) -> Option<u32> {
        let named = entry.get("id").or_else(|| entry.get("token_id")).and_then(Value::as_u64);
        let text = || entry.get("token")?.as_str()?.strip_prefix("token_id:")?.parse().ok();
        let id = u32::try_from(named.or_else(text)?).ok()?;
        ((id as usize) < self.size).then_some(id)
    }

    /// True if an entry is the token `id`: several tokens may have the same text.
    fn is(&self, entry: &Value, id: u32) -> bool {
        match self.named(entry) {
            Some(named) => named == id,
            None => entry_bytes(entry).is_some_and(|bytes| self.bytes.get(id as usize) == Some(&bytes)),
        }
    }

    fn id(&self, entry: &Value) -> Option<u32> {
        self.named(entry).or_else(|| self.ids.get(&entry_bytes(entry)?).copied())
    }
}

/// The bytes of a token: `bytes`, or its text.
fn entry_bytes(entry: &Value) -> Option<Vec<u8>> {
    let bytes = entry.get("bytes").and_then(Value::as_array);
    let bytes =
        bytes.map(|list| list.iter().map(|byte| u8::try_from(byte.as_u64()?).ok()).collect::<Option<Vec<u8>>>());
    bytes
        .flatten()
        .filter(|bytes| !bytes.is_empty())
        .or_else(|| Some(entry.get("token")?.as_str()?.as_bytes().to_vec()))
}
