//! Reports what became of a data set, for the user and for the record of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::settings::Shape;

/// Number of records that a report or an error lists.
pub const LISTED: usize = 10;

/// Reasons to drop a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    EmptyText,
    TooLong,
    /// No trained token was left after truncation.
    NothingTrainedLeft,
    /// The last sequence of a text had only one token.
    LastToken,
}

impl DropReason {
    fn sentence(self) -> &'static str {
        match self {
            Self::EmptyText => "empty text",
            Self::TooLong => "longer than the longest sequence",
            Self::NothingTrainedLeft => "nothing to train on left after cutting",
            Self::LastToken => "a last sequence of one token",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Dropped {
    pub count: usize,
    /// Numbers of the first dropped records.
    pub first: Vec<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct DataReport {
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub source: PathBuf,
    /// Source of the chat template, if one was used.
    pub chat_template: Option<String>,
    /// Date and time that the chat template wrote as those of now, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub template_date: Option<String>,
    /// Changes of records for training, each with the number of records.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "Record<string, number>"))]
    pub notes: BTreeMap<String, usize>,
    /// Number of records of each shape.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<Shape, number>>"))]
    pub shapes: BTreeMap<Shape, usize>,
    /// Number of records, or for a `.txt` file of the sequences that it was cut into.
    pub read: usize,
    /// Number of examples; more than the records if long records were split.
    pub kept: usize,
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<DropReason, Dropped>>"))]
    pub dropped: BTreeMap<DropReason, Dropped>,
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

impl DataReport {
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
        writeln!(f, "{source}: {} examples from {} records ({})", self.kept, self.read, shapes.join(", "))?;
        if let Some(template) = &self.chat_template {
            let date = self.template_date.as_ref().map_or_else(String::new, |date| format!(", written for {date}"));
            writeln!(f, "  chat template: {template}{date}")?;
        }
        let share = 100.0 * self.trained_tokens as f64 / self.tokens.max(1) as f64;
        writeln!(f, "  {} tokens, {} of them trained on ({share:.1}%)", self.tokens, self.trained_tokens)?;
        write!(f, "  longest record: {} tokens", self.longest)?;
        if let Some(slots) = self.slots {
            write!(f, "\n  packed into {slots} slots")?;
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
            write!(f, "\n  {count} dropped: {} (number {}{more})", reason.sentence(), numbers.join(", "))?;
        }
        Ok(())
    }
}
