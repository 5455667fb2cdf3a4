//! Reads the files of a data set one after the other, and keeps what training sees of them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::bad::Bad;
use super::lengths::{Fitted, fit};
use crate::data::Example;
use crate::data::columns::check_names;
use crate::data::encode::{Encoder, Refusal, Rule};
use crate::data::opened::{self, FileKind, SUPPORTED, kind_of};
use crate::data::packing::pack;
use crate::data::records::{self, Place, Records};
use crate::data::report::{DataReport, DropReason, LISTED};
use crate::data::sample::first_words;
use crate::data::settings::{DataSettings, OnBad, OnLong, Shape};
use crate::data::table;
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::setting::{MAX_SEQ_LEN, ON_LONG};
use crate::{Error, Result, files};

/// The examples of a data set, and what became of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The examples, in the order of the files.
    pub examples: Vec<Example>,
    /// Counts of records, examples and tokens, and the dropped records.
    pub report: DataReport,
}

/// Where an example comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::data) struct Origin {
    /// Line, record or row of the source; for a text the number of the sequence.
    pub number: usize,
    pub shape: Shape,
    pub change: Change,
}

/// What the length limit made of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) enum Change {
    Whole,
    /// The end was cut off; the record had so many tokens.
    CutFrom(usize),
    /// A piece, counted from 1, of so many.
    Piece(usize, usize),
    /// Longer than the longest sequence, so that training would leave it out or refuse the data.
    TooLong,
}

/// An example with its text, where it is kept.
#[derive(Clone, Debug)]
pub(in crate::data) struct Kept {
    pub example: Example,
    pub origin: Origin,
    pub text: String,
    /// Byte range in `text` of each token; empty for records of token ids and texts cut into sequences.
    pub ranges: Vec<Range<usize>>,
}

/// The reading of a data set.
pub(in crate::data) struct Reading<'a> {
    tokenizer: Option<&'a Tokenizer>,
    settings: &'a DataSettings,
    encoder: Encoder<'a>,
    pub examples: Vec<Example>,
    pub origins: Vec<Origin>,
    /// Number of tokens of every example before the length limit.
    pub lengths: Vec<usize>,
    /// Number of examples to keep with their text, and those examples.
    keep: usize,
    pub kept: Vec<Kept>,
    /// A prompt from the first record, where examples are kept.
    pub question: Option<String>,
    /// The first examples that were too long.
    pub long: Vec<Kept>,
    pub report: DataReport,
    bad: Bad,
    too_long: Vec<(Place, usize)>,
    /// Number of ends of trained turns, and of those that the length limit leaves.
    ends: usize,
    ends_kept: usize,
}

impl<'a> Reading<'a> {
    /// Begins to read, and keeps the first `keep` examples with their text.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub(in crate::data) fn new(
        tokenizer: Option<&'a Tokenizer>,
        settings: &'a DataSettings,
        vocab_size: usize,
        keep: usize,
    ) -> Result<Self> {
        let max_seq_len = settings.max_seq_len;
        if max_seq_len < 2 {
            let problem = format!("{MAX_SEQ_LEN} is {max_seq_len}; it must be at least 2");
            return Err(Error::setting(MAX_SEQ_LEN, problem));
        }
        check_names(settings)?;
        Ok(Self {
            tokenizer,
            settings,
            encoder: Encoder::new(tokenizer, settings, vocab_size),
            examples: Vec::new(),
            origins: Vec::new(),
            lengths: Vec::new(),
            keep,
            kept: Vec::new(),
            question: None,
            long: Vec::new(),
            report: DataReport::default(),
            bad: Bad::default(),
            too_long: Vec::new(),
            ends: 0,
            ends_kept: 0,
        })
    }

    /// Reads one file.
    ///
    /// # Errors
    /// The file cannot be read, or no record of it could be: a setting or a file of the model is wrong.
    pub(in crate::data) fn file(&mut self, path: &Path) -> Result<()> {
        match kind_of(path) {
            Some(FileKind::Text) => self.text(path),
            Some(kind) => self.records(path, kind),
            None if !files::exists(path) => {
                let problem = "is not there; data is a file, a directory, or a data set of the hub as owner/name";
                Err(Error::file(path, problem))
            }
            None => Err(Error::file(path, SUPPORTED)),
        }
    }

    /// Cuts one text into sequences whose tokens are all trained on.
    fn text(&mut self, path: &Path) -> Result<()> {
        let mut text = String::new();
        let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
        opened::text(path)?.read_to_string(&mut text).map_err(unreadable)?;
        let problem = "holds text, but there is no tokenizer: tokenizer.json is missing";
        let tokenizer = self.tokenizer.ok_or_else(|| Error::file(path, problem))?;
        let ids = tokenizer.encode(&text, false)?;
        if self.keep > 0 && self.question.is_none() {
            self.question = Some(first_words(&text)).filter(|words| !words.is_empty());
        }
        let sequences = ids.chunks(self.settings.max_seq_len);
        if ids.len() == 1 {
            return Err(Error::file(path, "holds one token, but training needs two or more"));
        }
        self.report.longest = self.report.longest.max(ids.len().min(self.settings.max_seq_len));
        if self.report.formats.is_empty() {
            self.report.formats.push("text, from a file that is cut into sequences".to_owned());
        }
        for sequence in sequences {
            self.report.read += 1;
            let number = self.report.read;
            *self.report.shapes.entry(Shape::Text).or_default() += 1;
            if sequence.len() < 2 {
                self.report.drop_record(DropReason::LastToken, number);
                continue;
            }
            self.lengths.push(sequence.len());
            let example = Example::new(sequence.to_vec(), vec![true; sequence.len()]);
            self.take(example, Origin { number, shape: Shape::Text, change: Change::Whole }, None);
        }
        Ok(())
    }

    fn records(&mut self, path: &Path, kind: FileKind) -> Result<()> {
        let (place, records) = open(path, kind)?;
        for record in records {
            let (number, record) = record?;
            self.report.read += 1;
            let encoded = match record {
                Ok(record) => {
                    if self.keep > 0 && self.question.is_none() {
                        self.question = self.encoder.question(&record);
                    }
                    self.encoder.encode(&record)
                }
                Err(problem) => Err(Refusal { rule: Rule::Readable, detail: problem }),
            };
            let (shape, encoded) = match encoded {
                Ok(encoded) => encoded,
                Err(Refusal { rule: Rule::Setup, detail }) => return Err(place.error(number, detail)),
                Err(refusal) => {
                    self.bad.add(&place, number, refusal);
                    continue;
                }
            };
            *self.report.shapes.entry(shape).or_default() += 1;
            let Some(encoded) = encoded else {
                self.report.drop_record(DropReason::EmptyText, number);
                continue;
            };
            let length = encoded.example.longest();
            self.lengths.push(length);
            self.report.longest = self.report.longest.max(length);
            for note in &encoded.notes {
                *self.report.notes.entry(note.clone()).or_default() += 1;
            }
            let wanted = self.kept.len() < self.keep || self.long.len() < self.keep;
            let source = wanted.then(|| (encoded.text.clone(), encoded.ranges.clone()));
            let own_ends = encoded.ends.len();
            let origin = |change| Origin { number, shape, change };
            match fit(encoded, self.settings) {
                Fitted::Whole(example) => {
                    self.count_ends(own_ends, own_ends);
                    self.take(example, origin(Change::Whole), source);
                }
                Fitted::TooLong(example) => {
                    if self.too_long.len() <= LISTED {
                        self.too_long.push((place.clone(), number));
                    }
                    self.report.drop_record(DropReason::TooLong, number);
                    if self.long.len() < self.keep {
                        let (text, ranges) = source.unwrap_or_default();
                        self.long.push(Kept { example, origin: origin(Change::TooLong), text, ranges });
                    }
                }
                Fitted::Cut(example, kept) => {
                    self.count_ends(own_ends, kept);
                    self.report.truncated += 1;
                    self.take(example, origin(Change::CutFrom(length)), source);
                }
                Fitted::Split(pieces, kept) => {
                    self.count_ends(own_ends, kept);
                    self.report.split += 1;
                    let count = pieces.len();
                    for (index, (piece, tokens)) in pieces.into_iter().enumerate() {
                        let source = source
                            .clone()
                            .map(|(text, ranges)| (text, ranges.get(tokens).unwrap_or_default().to_vec()));
                        self.take(piece, origin(Change::Piece(index + 1, count)), source);
                    }
                }
                Fitted::NothingLeft => self.report.drop_record(DropReason::NothingTrainedLeft, number),
            }
        }
        Ok(())
    }

    fn count_ends(&mut self, ends: usize, kept: usize) {
        self.ends += ends;
        self.ends_kept += kept;
    }

    fn take(&mut self, example: Example, origin: Origin, source: Option<(String, Vec<Range<usize>>)>) {
        if self.kept.len() < self.keep {
            let (text, mut ranges) = source.unwrap_or_default();
            ranges.truncate(example.input_ids.len());
            self.kept.push(Kept { example: example.clone(), origin: origin.clone(), text, ranges });
        }
        self.examples.push(example);
        self.origins.push(origin);
    }

    /// Completes the report and gives the examples.
    ///
    /// # Errors
    /// The data as the settings have it would train a mistake, or nothing.
    pub(in crate::data) fn finish(mut self, sources: &[PathBuf]) -> Result<Dataset> {
        self.report.source = name_of(sources);
        let template = self.encoder.used_template();
        self.report.chat_template = template.map(|template| template.source().to_owned());
        self.report.template_fingerprint = template.map_or_else(String::new, ChatTemplate::fingerprint);
        let writes_date = template.is_some_and(ChatTemplate::writes_the_date);
        self.report.template_date = self.settings.template_date.clone().filter(|_| writes_date);
        self.report.formats.extend(self.encoder.formats());
        self.report.unused.extend(self.encoder.unused());
        let read = self.report.read;
        match self.settings.on_bad {
            OnBad::Refuse => self.bad.refuse(&self.report.source, read)?,
            OnBad::Drop => self.report.drop_bad(self.bad.count(), self.bad.lines()),
        }
        self.check_lengths()?;
        let (examples, report) = (self.examples, &mut self.report);
        report.kept = examples.len();
        report.tokens = examples.iter().map(Example::tokens).sum();
        report.trained_tokens = examples.iter().map(Example::trained_tokens).sum();
        report.slots = self.settings.packing.then(|| pack(&examples, self.settings.max_seq_len).len());
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
        Ok(Dataset { examples, report: self.report })
    }

    fn check_lengths(&self) -> Result<()> {
        let (report, settings) = (&self.report, self.settings);
        let too_long = report.dropped.get(&DropReason::TooLong).map_or(0, |dropped| dropped.count);
        let refuses = match settings.on_long {
            OnLong::Auto => too_long * 100 >= report.read,
            on_long => on_long == OnLong::Refuse,
        };
        if refuses && too_long > 0 {
            return Err(Error::file(&report.source, self.too_long_sentence(too_long)));
        }
        if self.ends > 0 && self.ends_kept == 0 && !self.examples.is_empty() {
            let problem = "leaves no example its end of turn, so the model would never learn to stop";
            let advice = match settings.raised_limit(report.longest) {
                Some(limit) => format!("raise it to {limit}"),
                None => format!("shorten the examples, or choose {} or split", ON_LONG.is("drop")),
            };
            return Err(Error::file(&report.source, format!("cutting to {MAX_SEQ_LEN} {problem}; {advice}")));
        }
        Ok(())
    }

    fn too_long_sentence(&self, count: usize) -> String {
        let numbers: Vec<usize> = self.too_long.iter().map(|(_, number)| *number).collect();
        let list = self.too_long.first().map(|(place, _)| place.list(&numbers, LISTED)).unwrap_or_default();
        let (longest, read, limit) = (self.report.longest, self.report.read, self.settings.max_seq_len);
        let others = format!("{}, drop or split", ON_LONG.is("truncate"));
        let advice = match self.settings.raised_limit(longest) {
            Some(raised) if raised >= longest => format!("raise {MAX_SEQ_LEN} to {longest}, or choose {others}"),
            Some(raised) => format!(
                "the model takes at most {raised} tokens, so raise {MAX_SEQ_LEN} to {raised} at most, and choose {others}"
            ),
            None => format!("the model takes no more, so choose {others}"),
        };
        format!(
            "{count} of {read} examples are longer than {limit} tokens, the longest has {longest} ({list}); nothing is cut \
             without being asked: {advice}"
        )
    }
}

/// Opens the records of a file and reads them one at a time where the format allows it. Lines and rows count from 1.
pub(in crate::data) fn open(path: &Path, kind: FileKind) -> Result<(Place, Records)> {
    match kind {
        FileKind::Json => records::json(path, opened::text(path)?),
        FileKind::Table { delimiter } => table::rows(path, opened::text(path)?, delimiter),
        #[cfg(not(target_arch = "wasm32"))]
        FileKind::Parquet => {
            let place = Place { path: path.to_owned(), unit: "row" };
            Ok((place, crate::data::parquet_file::rows(path, opened::raw(path)?)?))
        }
        #[cfg(target_arch = "wasm32")]
        FileKind::Parquet => {
            Err(Error::file(path, "is a Parquet file, which the page does not read; save it as JSON lines"))
        }
        #[cfg(not(target_arch = "wasm32"))]
        FileKind::Arrow => {
            let place = Place { path: path.to_owned(), unit: "row" };
            Ok((place, crate::data::arrow_file::rows(path, opened::raw(path)?)?))
        }
        #[cfg(target_arch = "wasm32")]
        FileKind::Arrow => {
            Err(Error::file(path, "is an Arrow file, which the page does not read; save it as JSON lines"))
        }
        FileKind::Text => Err(Error::file(path, SUPPORTED)),
    }
}

/// The sources of a data set as one name.
fn name_of(sources: &[PathBuf]) -> PathBuf {
    match sources {
        [one] => one.clone(),
        [first, .., last] if sources.len() > 3 => {
            format!("{} to {} ({} files)", first.display(), last.display(), sources.len()).into()
        }
        _ => sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ").into(),
    }
}
