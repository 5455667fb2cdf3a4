//! Data files to examples: `.txt` cut into sequences, `.jsonl` of texts, tokens, or prompts with completions.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::Example;
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Of how many lines an error lists the numbers.
const LISTED_LINES: usize = 10;

/// What was read, for the person who starts the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataReport {
    pub source: PathBuf,
    /// Lines that are not blank, or for `.txt` the sequences that the text was cut into.
    pub read: usize,
    /// Examples; the rest were empty texts, or a last sequence of one token.
    pub kept: usize,
    /// Of the kept examples.
    pub tokens: usize,
    /// Those that the loss is taken over.
    pub trained_tokens: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub report: DataReport,
}

/// Reads a `.txt` or `.jsonl` file, or the `train.*` of a directory.
///
/// A `.txt` is encoded whole, without special tokens, and cut into sequences of `max_seq_len`. In `.jsonl` files each
/// line is `{"text"}`, `{"prompt", "completion"}` or `{"input_ids", "labels"?}`; an example longer than `max_seq_len`
/// is an error, never cut. Only `input_ids` can do without `tokenizer`. Token ids must be below `vocab_size`.
pub fn read(path: &Path, tokenizer: Option<&Tokenizer>, max_seq_len: usize, vocab_size: usize) -> Result<Dataset> {
    if path.is_dir() {
        let missing = || Error::file(path, "holds neither train.jsonl nor train.txt");
        return read_split(path, "train", tokenizer, max_seq_len, vocab_size)?.ok_or_else(missing);
    }
    if max_seq_len < 2 {
        return Err(Error::Setting(format!("the maximal sequence length is {max_seq_len}, but must be at least 2")));
    }
    let (examples, read) = match path.extension().and_then(|e| e.to_str()) {
        Some("txt") => read_text(path, require(tokenizer, path)?, max_seq_len)?,
        Some("jsonl") => read_lines(path, tokenizer, max_seq_len, vocab_size)?,
        _ => return Err(Error::file(path, "is no data file that can be read; supported are .txt and .jsonl")),
    };
    if examples.is_empty() {
        return Err(Error::file(path, "holds no example: it is empty"));
    }
    let tokens = examples.iter().map(|e| e.input_ids.len()).sum();
    let trained_tokens = examples.iter().map(Example::trained_tokens).sum();
    let report = DataReport { source: path.to_owned(), read, kept: examples.len(), tokens, trained_tokens };
    Ok(Dataset { examples, report })
}

/// Reads `split` (`train`, `valid` or `test`) of a directory, if it has one. The arguments are those of [`read`].
pub fn read_split(
    dir: &Path,
    split: &str,
    tokenizer: Option<&Tokenizer>,
    max_seq_len: usize,
    vocab_size: usize,
) -> Result<Option<Dataset>> {
    let file = |extension: &str| Some(dir.join(format!("{split}.{extension}"))).filter(|path| path.is_file());
    let path = match (file("jsonl"), file("txt")) {
        (Some(_), Some(_)) => {
            return Err(Error::file(dir, format!("holds {split}.jsonl and {split}.txt; keep one of them")));
        }
        (Some(path), None) | (None, Some(path)) => path,
        (None, None) => match ["json", "parquet", "csv"].into_iter().find_map(file) {
            Some(other) => return Err(Error::file(other, "cannot be read; supported are .txt and .jsonl")),
            None => return Ok(None),
        },
    };
    read(&path, tokenizer, max_seq_len, vocab_size).map(Some)
}

fn require<'a>(tokenizer: Option<&'a Tokenizer>, path: &Path) -> Result<&'a Tokenizer> {
    tokenizer.ok_or_else(|| Error::file(path, "holds text, but there is no tokenizer: tokenizer.json is missing"))
}

/// Sequences of one text, each token trained on, and how many there were before the last was left out for its length.
fn read_text(path: &Path, tokenizer: &Tokenizer, max_seq_len: usize) -> Result<(Vec<Example>, usize)> {
    let text = fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let ids = tokenizer.encode(&text, false)?;
    let sequences = ids.chunks(max_seq_len);
    let read = sequences.len();
    let examples: Vec<_> = sequences.filter(|ids| ids.len() >= 2).map(|ids| all_trained(ids.to_vec())).collect();
    match (examples.is_empty(), read) {
        (true, 1) => Err(Error::file(path, "holds one token, but training needs two or more")),
        _ => Ok((examples, read)),
    }
}

fn all_trained(input_ids: Vec<u32>) -> Example {
    Example { trained: vec![true; input_ids.len()], input_ids }
}

/// The examples of a `.jsonl` file, and how many lines were not blank.
fn read_lines(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    max_seq_len: usize,
    vocab_size: usize,
) -> Result<(Vec<Example>, usize)> {
    let file = File::open(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let (mut examples, mut read) = (Vec::new(), 0);
    let (mut too_long, mut longest) = (Vec::new(), 0);
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let number = index + 1;
        let line = line.map_err(|e| Error::line(path, number, format!("cannot be read: {e}")))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        read += 1;
        let at_line = |problem: String| Error::line(path, number, problem);
        let record = match serde_json::from_str(line) {
            Ok(Value::Object(record)) => record,
            Ok(_) => return Err(at_line("must hold one JSON object".into())),
            Err(e) => return Err(at_line(format!("is not valid JSON: {e}"))),
        };
        let example = match (record.get("input_ids"), record.get("prompt"), record.get("text")) {
            (Some(ids), _, _) => from_tokens(ids, record.get("labels"), vocab_size).map_err(at_line)?,
            (None, Some(prompt), _) => {
                let (prompt, completion) = prompt_and_completion(prompt, &record).map_err(at_line)?;
                from_completion(require(tokenizer, path)?, prompt, completion)?
            }
            (None, None, Some(Value::String(text))) if text.is_empty() => continue,
            (None, None, Some(Value::String(text))) => from_text(require(tokenizer, path)?, text)?,
            (None, None, Some(other)) => return Err(at_line(format!("`text` is {other}, but must be a string"))),
            (None, None, None) => return Err(at_line(unknown_shape(&record))),
        };
        if let (Some(tokenizer), None) = (tokenizer, record.get("input_ids")) {
            refuse_two_begins(tokenizer, &example).map_err(at_line)?;
        }
        if example.trained_tokens() == 0 {
            let rule = "every token is masked, or there is only one";
            return Err(at_line(format!("has no token to train on: {rule}")));
        }
        if example.input_ids.len() > max_seq_len {
            longest = longest.max(example.input_ids.len());
            too_long.push(number);
        }
        examples.push(example);
    }
    if !too_long.is_empty() {
        let listed: Vec<_> = too_long.iter().take(LISTED_LINES).map(usize::to_string).collect();
        let more = if too_long.len() > LISTED_LINES { " and more" } else { "" };
        return Err(Error::file(
            path,
            format!(
                "{} of {read} examples are longer than {max_seq_len} tokens, the longest has {longest} \
                 (lines {}{more}); \
                 they are not cut: raise --max-seq-len to {longest}, or shorten them",
                too_long.len(),
                listed.join(", ")
            ),
        ));
    }
    Ok((examples, read))
}

fn unknown_shape(record: &Map<String, Value>) -> String {
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    let supported = r#"{"text"}, {"prompt", "completion"} and {"input_ids", "labels"}"#;
    format!("has the fields [{}], which make no supported example; supported are {supported}", fields.join(", "))
}

/// A text with the tokenizer's begin token, if it adds one, and the end token; every token trained on.
fn from_text(tokenizer: &Tokenizer, text: &str) -> Result<Example> {
    let mut ids = tokenizer.encode(text, true)?;
    push_end(&mut ids, tokenizer.require_eos()?);
    Ok(all_trained(ids))
}

fn prompt_and_completion<'a>(prompt: &'a Value, record: &'a Map<String, Value>) -> Result<(&'a str, &'a str), String> {
    match (prompt, record.get("completion")) {
        (Value::String(_), Some(Value::String(completion))) if completion.is_empty() => {
            Err("`completion` is empty, so there is nothing to learn".into())
        }
        (Value::String(prompt), Some(Value::String(completion))) => Ok((prompt, completion)),
        (_, None) => Err(unknown_shape(record)),
        _ => Err("`prompt` and `completion` must both be strings".into()),
    }
}

/// The two parts are encoded separately, as TRL does, so that the prompt has the same tokens as without a completion.
fn from_completion(tokenizer: &Tokenizer, prompt: &str, completion: &str) -> Result<Example> {
    let mut input_ids = tokenizer.encode(prompt, true)?;
    let prompt_len = input_ids.len();
    let mut completion_ids = tokenizer.encode(completion, false)?;
    push_end(&mut completion_ids, tokenizer.require_eos()?);
    input_ids.append(&mut completion_ids);
    let trained = (0..input_ids.len()).map(|i| i >= prompt_len).collect();
    Ok(Example { input_ids, trained })
}

fn push_end(ids: &mut Vec<u32>, end: u32) {
    if ids.last() != Some(&end) {
        ids.push(end);
    }
}

/// A text that spells out the begin token gets it twice, which no model has seen.
fn refuse_two_begins(tokenizer: &Tokenizer, example: &Example) -> Result<(), String> {
    match (example.input_ids.as_slice(), tokenizer.bos()) {
        ([first, second, ..], Some(bos)) if *first == bos && *second == bos && tokenizer.eos() != Some(bos) => {
            Err("begins with the begin token twice; the tokenizer adds it, so take it out of the text".into())
        }
        _ => Ok(()),
    }
}

/// Tokens as they are; labels of -100 are not trained on, the others must repeat the token at their place.
fn from_tokens(ids: &Value, labels: Option<&Value>, vocab_size: usize) -> Result<Example, String> {
    let list = |name: &str, value: &Value| -> Result<Vec<i64>, String> {
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_i64).collect());
        numbers.ok_or_else(|| format!("`{name}` must be a list of whole numbers"))
    };
    let id = |(at, &id): (usize, &i64)| match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(format!("`input_ids` has {id} at element {at}, but the vocabulary ends at {}", vocab_size - 1)),
    };
    let input_ids: Vec<u32> = list("input_ids", ids)?.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    let Some(labels) = labels.filter(|labels| !labels.is_null()) else { return Ok(all_trained(input_ids)) };
    let labels = list("labels", labels)?;
    if labels.len() != input_ids.len() {
        return Err(format!("has {} input_ids but {} labels", input_ids.len(), labels.len()));
    }
    let trained = labels.iter().zip(&input_ids).enumerate().map(|(at, (&label, &id))| match label {
        -100 => Ok(false),
        label if label == i64::from(id) => Ok(true),
        label => Err(format!("`labels` has {label} at element {at}, but must have -100 or the token there, {id}")),
    });
    Ok(Example { trained: trained.collect::<Result<_, _>>()?, input_ids })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::tests::{stories, tiny_dir};

    fn tiny() -> Tokenizer {
        let (dir, mut config) = tiny_dir();
        config.bos_token_id = Some(0);
        Tokenizer::from_dir(dir.path(), &config).unwrap()
    }

    fn read_as(name: &str, content: &str, max_seq_len: usize) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        read(&path, Some(&tiny()), max_seq_len, 4)
    }

    fn masks(dataset: &Dataset) -> Vec<(Vec<u32>, String)> {
        let mask = |e: &Example| e.trained.iter().map(|t| if *t { '1' } else { '0' }).collect();
        dataset.examples.iter().map(|e| (e.input_ids.clone(), mask(e))).collect()
    }

    #[test]
    fn each_shape_becomes_tokens_and_a_mask() {
        let lines = r#"
{"text": "a b"}
{"text": "a </s>"}

{"prompt": "a a", "completion": "b"}
{"input_ids": [0, 2, 3]}
{"input_ids": [2, 3, 2], "labels": [-100, -100, 2]}
{"text": ""}"#;
        let dataset = read_as("d.jsonl", lines, 8).unwrap();
        let expected = [
            (vec![0, 2, 3, 1], "1111"),
            (vec![0, 2, 1], "111"),
            (vec![0, 2, 2, 3, 1], "00011"),
            (vec![0, 2, 3], "111"),
            (vec![2, 3, 2], "001"),
        ];
        assert_eq!(masks(&dataset), expected.map(|(ids, mask)| (ids, mask.to_owned())));
        let report = &dataset.report;
        assert_eq!((report.read, report.kept, report.tokens, report.trained_tokens), (6, 5, 18, 10));
    }

    #[test]
    fn a_text_is_cut_and_a_last_single_token_left_out() {
        let dataset = read_as("d.txt", "a b a b a b a", 3).unwrap();
        assert_eq!(masks(&dataset), [(vec![2, 3, 2], "111".to_owned()), (vec![3, 2, 3], "111".to_owned())]);
        assert_eq!((dataset.report.read, dataset.report.kept), (3, 2));
        assert_eq!(read_as("d.txt", "a b a b a", 3).unwrap().examples[1].input_ids, [3, 2]);
    }

    #[test]
    fn bad_lines_are_named_with_what_would_be_right() {
        let cases = [
            ("{", "is not valid JSON"),
            ("[1]", "one JSON object"),
            (r#"{"messages": []}"#, "fields [messages]"),
            (r#"{"prompt": "a"}"#, "fields [prompt]"),
            (r#"{"prompt": ["a"], "completion": "b"}"#, "must both be strings"),
            (r#"{"prompt": "a", "completion": ""}"#, "`completion` is empty"),
            (r#"{"text": 3}"#, "`text` is 3"),
            (r#"{"text": "<s> a"}"#, "begin token twice"),
            (r#"{"input_ids": [0, 4]}"#, "has 4 at element 1, but the vocabulary ends at 3"),
            (r#"{"input_ids": [0, -1]}"#, "has -1 at element 1"),
            (r#"{"input_ids": [0, 1.5]}"#, "list of whole numbers"),
            (r#"{"input_ids": [0, 1], "labels": [0]}"#, "has 2 input_ids but 1 labels"),
            (r#"{"input_ids": [0, 1], "labels": [0, 2]}"#, "but must have -100 or the token there, 1"),
            (r#"{"input_ids": [0, 1], "labels": [0, -100]}"#, "no token to train on"),
            (r#"{"input_ids": [2]}"#, "no token to train on"),
            (r#"{"input_ids": []}"#, "no token to train on"),
        ];
        for (line, says) in cases {
            let message =
                read_as("d.jsonl", &format!("{{\"text\": \"a\"}}\n\n{line}\n"), 8).expect_err(line).to_string();
            assert!(message.contains("d.jsonl, line 3: ") && message.contains(says), "{message}");
        }
    }

    #[test]
    fn long_examples_are_refused_with_their_lines() {
        let lines = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 2, 3, 1]}\n";
        let message = read_as("d.jsonl", lines, 2).unwrap_err().to_string();
        assert!(
            message.contains("2 of 3 examples are longer than 2 tokens, the longest has 4 (lines 1, 3)"),
            "{message}"
        );
        assert!(read_as("d.jsonl", lines, 4).is_ok());
    }

    #[test]
    fn files_without_examples_and_unknown_files_are_refused() {
        for (name, content, says) in [
            ("d.jsonl", "\n\n", "holds no example"),
            ("d.txt", "", "holds no example"),
            ("d.txt", "a", "one token"),
            ("d.csv", "a", "supported are .txt and .jsonl"),
        ] {
            let message = read_as(name, content, 8).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        assert!(read_as("d.txt", "a b", 1).unwrap_err().to_string().contains("at least 2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        fs::write(&path, "{\"text\": \"a\"}").unwrap();
        assert!(read(&path, None, 8, 4).unwrap_err().to_string().contains("no tokenizer"));
        assert!(read(&dir.path().join("x.jsonl"), None, 8, 4).unwrap_err().to_string().contains("cannot be read"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&path, None, 8, 4).unwrap_err().to_string().contains("line 1: cannot be read"));
    }

    #[test]
    fn a_directory_has_splits() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = |name: &str| fs::write(dir.path().join(name), "{\"input_ids\": [1, 2]}").unwrap();
        let message = |result: Result<Dataset>| result.unwrap_err().to_string();
        assert!(message(read(dir.path(), None, 8, 4)).contains("neither train.jsonl nor train.txt"));
        tokens("train.jsonl");
        assert_eq!(read(dir.path(), None, 8, 4).unwrap().report.source, dir.path().join("train.jsonl"));
        assert!(read_split(dir.path(), "valid", None, 8, 4).unwrap().is_none());
        tokens("valid.jsonl");
        assert_eq!(read_split(dir.path(), "valid", None, 8, 4).unwrap().unwrap().report.kept, 1);
        tokens("train.txt");
        assert!(message(read(dir.path(), None, 8, 4)).contains("keep one"));
        tokens("test.parquet");
        assert!(read_split(dir.path(), "test", None, 8, 4).unwrap_err().to_string().contains("test.parquet"));
    }

    #[test]
    fn a_whole_book_has_the_tokens_that_transformers_finds() {
        let path = Path::new("../shared/datasets/tinyshakespeare/input.txt");
        let Some(tokenizer) = stories().filter(|_| path.is_file()) else {
            eprintln!("skipped: {} or the tokenizer is not there", path.display());
            return;
        };
        let report = read(path, Some(&tokenizer), 128, 512).unwrap().report;
        assert_eq!((report.tokens, report.kept), (693_363, 5417));
    }
}
