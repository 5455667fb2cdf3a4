//! Reads data files of every shape and type into examples, applies the length limit, and reports what became of each record.

mod bad;
mod lengths;
pub(super) mod reading;

use std::path::{Path, PathBuf};

pub use super::report::DataReport;
use super::settings::DataSettings;
use super::splits::{Split, SplitFiles, files_of, nothing_to_train};
use super::tokenizer::Tokenizer;
use crate::{Error, Result, files};
pub use reading::Dataset;
use reading::Reading;

/// [`read_with`] with default settings and this `max_seq_len`.
///
/// # Errors
/// As [`read_with`].
pub fn read(path: &Path, tokenizer: Option<&Tokenizer>, max_seq_len: usize, vocab_size: usize) -> Result<Dataset> {
    read_with(path, tokenizer, &DataSettings { max_seq_len, ..Default::default() }, vocab_size)
}

/// Reads one data file, or the training data of a directory. The other arguments are those of [`read_sources`].
///
/// # Errors
/// As [`read_sources`], and no training data.
pub fn read_with(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Dataset> {
    let sources = [path.to_owned()];
    let data = read_sources(&sources, Split::Train, tokenizer, settings, vocab_size)?;
    data.ok_or_else(|| nothing_to_train(path))
}

/// Reads a split of data sets, together and in their order; `None` where no source has it. A source is a file, which is training data, a
/// directory with files such as `train.jsonl` or `data/train-00000-of-00002.parquet`, or one split of a directory, `DIR:SPLIT`.
///
/// A text file is encoded as a whole, without special tokens, and cut into sequences. Other files hold records, whose shape comes from
/// `settings` or from their fields. Records of `input_ids` need no `tokenizer`. The chat template is searched beside the tokenizer's
/// files. Token ids must be below `vocab_size`.
///
/// # Errors
/// Lists the refused records: those that cannot be read, examples without a trained token, assistant turns that do not end in a special
/// token, two begin tokens in a row; and examples longer than `settings.max_seq_len`, unless the settings treat them otherwise.
pub fn read_sources(
    sources: &[PathBuf],
    split: Split,
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Option<Dataset>> {
    let mut reading = Reading::new(tokenizer, settings, vocab_size, 0)?;
    match read_into(&mut reading, sources, split)? {
        files if files.is_empty() => Ok(None),
        files => reading.finish(&files).map(Some),
    }
}

/// Reads the files of a split and returns them.
pub(super) fn read_into(reading: &mut Reading, sources: &[PathBuf], split: Split) -> Result<Vec<PathBuf>> {
    let mut read = Vec::new();
    for source in sources {
        let Some(SplitFiles { files, left_out }) = files_of(source, split)? else {
            match split {
                Split::Train if sources.len() > 1 => return Err(nothing_to_train(source)),
                _ => continue,
            }
        };
        for file in left_out {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            reading.report.unused.insert(format!("the file {name}"), 1);
        }
        for file in files {
            reading.file(&file)?;
            read.push(file);
        }
    }
    Ok(read)
}

/// Reads the data to evaluate on: the test split of the sources, else the validation split, else what they are.
///
/// # Errors
/// As [`read_sources`], and a directory with neither split.
pub fn read_to_evaluate(
    sources: &[PathBuf],
    tokenizer: Option<&Tokenizer>,
    settings: &DataSettings,
    vocab_size: usize,
) -> Result<Dataset> {
    let read = |split| read_sources(sources, split, tokenizer, settings, vocab_size);
    if let Some(data) = read(Split::Test)? {
        return Ok(data);
    }
    if let Some(data) = read(Split::Valid)? {
        return Ok(data);
    }
    if let Some(dir) = sources.iter().find(|source| files::is_dir(source)) {
        let problem =
            "holds no file for evaluation, such as test.jsonl or validation.jsonl; name the file to evaluate on";
        return Err(Error::file(dir, problem));
    }
    read(Split::Train)?.ok_or_else(|| nothing_to_train(sources.first().map_or(Path::new(""), PathBuf::as_path)))
}

#[cfg(test)]
mod tests;
