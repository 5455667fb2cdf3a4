//! Reports what became of a data set, for the user and for the record of a run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::settings::Shape;

/// Number of records that a report or an error lists.
pub const LISTED: usize = 10;
/// Number of bad records whose reasons a report or an error gives.
pub const BAD_LISTED: usize = 20;

/// Reasons to drop a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// The text is empty.
    EmptyText,
    /// It is longer than the longest sequence.
    TooLong,
    /// No trained token was left after truncation.
    NothingTrainedLeft,
    /// The last sequence of a text had only one token.
    LastToken,
    /// The record cannot be read or trained on; the report has the reasons.
    Bad,
}

impl DropReason {
    fn sentence(self) -> &'static str {
        match self {
            Self::EmptyText => "empty text",
            Self::TooLong => "longer than the longest sequence",
            Self::NothingTrainedLeft => "nothing to train on left after cutting",
            Self::LastToken => "a last sequence of one token",
            Self::Bad => "cannot be trained on",
        }
    }
}

/// The records that were dropped for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Dropped {
    /// Number of these records.
    pub count: usize,
    /// Numbers of the first dropped records.
    pub first: Vec<usize>,
}

/// The report on a data file: what its records became.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct DataReport {
    /// The file.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub source: PathBuf,
    /// Source of the chat template, if one was used.
    pub chat_template: Option<String>,
    /// Fingerprint of the template's text; empty where none was used.
    #[serde(skip)]
    pub template_fingerprint: String,
    /// Date and time that the chat template wrote as those of now, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub template_date: Option<String>,
    /// Changes of records for training, each with the number of records.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "Record<string, number>"))]
    pub notes: BTreeMap<String, usize>,
    /// How the records were read: for each shape the fields that it comes from.
    pub formats: Vec<String>,
    /// Number of records of each shape.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<Shape, number>>"))]
    pub shapes: BTreeMap<Shape, usize>,
    /// Number of records, or for a `.txt` file of the sequences that it was cut into.
    pub read: usize,
    /// Number of examples; more than the records if long records were split.
    pub kept: usize,
    /// The dropped records by reason.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<DropReason, Dropped>>"))]
    pub dropped: BTreeMap<DropReason, Dropped>,
    /// Reasons to drop the first of the records that cannot be trained on, each with its place.
    pub bad: Vec<String>,
    /// What was read and not used, with the number of records, messages or files.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Record<string, number>"))]
    pub unused: BTreeMap<String, usize>,
    /// Number of truncated examples.
    pub truncated: usize,
    /// Number of records that were split into several examples.
    pub split: usize,
    /// Tokens of the kept examples.
    pub tokens: usize,
    /// Tokens in the loss.
    pub trained_tokens: usize,
    /// Tokens of the longest record before truncation.
    pub longest: usize,
    /// Slots that the examples fill, with packing.
    pub slots: Option<usize>,
}

/// Counts what was read and not used.
#[derive(Debug, Default)]
pub(super) struct Tally(RefCell<BTreeMap<String, usize>>);

impl Tally {
    pub(super) fn add(&self, what: impl Into<String>) {
        *self.0.borrow_mut().entry(what.into()).or_default() += 1;
    }

    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        self.0.borrow().clone()
    }
}

/// A count with its noun in the singular or plural: `1 example`, `2 examples`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

impl DataReport {
    /// Counts records that cannot be trained on, with a line for each reason.
    pub(super) fn drop_bad(&mut self, count: usize, reasons: Vec<String>) {
        if count > 0 {
            self.dropped.insert(DropReason::Bad, Dropped { count, first: Vec::new() });
            self.bad = reasons;
        }
    }

    pub(super) fn drop_record(&mut self, reason: DropReason, number: usize) {
        let dropped = self.dropped.entry(reason).or_default();
        dropped.count += 1;
        if dropped.first.len() < LISTED {
            dropped.first.push(number);
        }
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shapes: Vec<_> = self.shapes.keys().map(|shape| shape.name()).collect();
        let source = self.source.display();
        let (kept, read) = (counted(self.kept, "example"), counted(self.read, "record"));
        writeln!(f, "{source}: {kept} from {read} ({})", shapes.join(", "))?;
        for format in &self.formats {
            writeln!(f, "  format: {format}")?;
        }
        if let Some(template) = &self.chat_template {
            let date = self.template_date.as_ref().map_or_else(String::new, |date| format!(", written for {date}"));
            writeln!(f, "  chat template: {template}{date}")?;
        }
        let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
        let tokens = counted(self.tokens, "token");
        writeln!(f, "  {tokens}, {} of them trained on ({share:.1}%)", self.trained_tokens)?;
        write!(f, "  longest record: {}", counted(self.longest, "token"))?;
        if let Some(slots) = self.slots {
            write!(f, "\n  packed into {}", counted(slots, "slot"))?;
        }
        if self.truncated > 0 {
            write!(f, "\n  {} cut at their end", self.truncated)?;
        }
        if self.split > 0 {
            write!(f, "\n  {} split into several examples", self.split)?;
        }
        for (note, count) in &self.notes {
            write!(f, "\n  {count} of {}: {note}", self.read)?;
        }
        for (reason, Dropped { count, first }) in &self.dropped {
            let numbers: Vec<_> = first.iter().map(usize::to_string).collect();
            let more = if *count > first.len() { ", ..." } else { "" };
            let numbers = match numbers.is_empty() {
                true => String::new(),
                false => format!(" (number {}{more})", numbers.join(", ")),
            };
            write!(f, "\n  {count} dropped: {}{numbers}", reason.sentence())?;
        }
        for problem in &self.bad {
            write!(f, "\n    {problem}")?;
        }
        if !self.unused.is_empty() {
            let unused: Vec<_> = self.unused.iter().map(|(what, count)| format!("{what} ({count})")).collect();
            write!(f, "\n  not used: {}", unused.join(", "))?;
        }
        Ok(())
    }
}
