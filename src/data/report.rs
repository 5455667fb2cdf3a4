//! What became of a data set, for the person who starts a run and for its record.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::settings::Shape;

/// Of how many records a report or an error lists the numbers.
pub const LISTED: usize = 10;

/// Why records left no example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    EmptyText,
    TooLong,
    /// Cut to the longest sequence, it had no trained token left.
    NothingTrainedLeft,
    /// The last sequence of a text had one token.
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
    /// The numbers of the first of them.
    pub first: Vec<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct DataReport {
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub source: PathBuf,
    /// Where the chat template came from, if one was used.
    pub chat_template: Option<String>,
    /// How many records had each shape.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<Shape, number>>"))]
    pub shapes: BTreeMap<Shape, usize>,
    /// Records, or for `.txt` the sequences that the text was cut into.
    pub read: usize,
    /// Examples. Splitting makes them more than the records.
    pub kept: usize,
    #[cfg_attr(target_arch = "wasm32", tsify(type = "Partial<Record<DropReason, Dropped>>"))]
    pub dropped: BTreeMap<DropReason, Dropped>,
    /// Examples whose end was cut off.
    pub truncated: usize,
    /// Records that became several examples.
    pub split: usize,
    /// Of the kept examples.
    pub tokens: usize,
    /// Those that the loss is taken over.
    pub trained_tokens: usize,
    /// Tokens of the longest record before any cutting.
    pub longest: usize,
    /// With packing: the slots that the examples fill.
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
            writeln!(f, "  chat template: {template}")?;
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
        for (reason, Dropped { count, first }) in &self.dropped {
            let numbers: Vec<_> = first.iter().map(usize::to_string).collect();
            let more = if *count > first.len() { ", ..." } else { "" };
            write!(f, "\n  {count} dropped: {} (number {}{more})", reason.sentence(), numbers.join(", "))?;
        }
        Ok(())
    }
}
