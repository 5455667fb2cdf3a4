//! Shows a data set as training sees it: its first examples token by token, and the lengths of all examples.

use std::path::PathBuf;

use serde::Serialize;

use super::packing::pack;
use super::read::reading::{Change, Kept, Origin, Reading};
use super::read::{DataReport, Dataset, read_into};
use super::settings::{DataSettings, Shape};
use super::shown::{pieces_of_text, pieces_of_tokens};
use super::splits::{Split, nothing_to_train};
use super::tokenizer::Tokenizer;
use super::{Comparison, Example};
use crate::Result;

/// A token of an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ShownToken {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Text of the token, or of the group of tokens that it begins; empty if it continues a group.
    pub text: String,
    /// True if it is in the loss.
    pub trained: bool,
    /// True if the token shares a character with the one before: their text stands at the first token of the group.
    pub continues: bool,
}

/// An example of a data set, token by token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ShownExample {
    /// Line, record or row of the source; for a text the number of the sequence.
    pub number: usize,
    /// The shape of its record.
    pub shape: Shape,
    /// The text of all tokens.
    pub text: String,
    /// Its tokens, before the length limit.
    pub tokens: Vec<ShownToken>,
    /// What the length limit made of the record, if anything: `cut from 96 tokens`.
    pub change: Option<String>,
    /// With packing, the number of the slot that the example shares, from 1.
    pub slot: Option<usize>,
    /// In a preference what was found of the answer: chosen or rejected, good or bad.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub found: Option<&'static str>,
}

/// The first examples of a data set, and a report on all of it.
#[derive(Debug, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Inspection {
    /// The first examples as training sees them: cut, split and in slots as the settings say. If training would refuse the data
    /// because it has no other examples, the first long ones.
    pub examples: Vec<ShownExample>,
    /// A prompt from the data, for a first try of what was trained: that of the first record, or the first words of a text.
    pub question: Option<String>,
    /// Number of tokens of every example that could be encoded, before truncation.
    pub lengths: Vec<usize>,
    /// Report of the data that training would read.
    pub report: Option<DataReport>,
    /// The error with which training would refuse the data.
    pub refusal: Option<String>,
}

/// Encodes the data sets as training does and keeps the first `count` examples with their text. The result also reports data that
/// training would refuse; only an unreadable file is an error.
///
/// # Errors
/// A file that cannot be read.
pub fn inspect(
    sources: &[PathBuf],
    tokenizer: &Tokenizer,
    settings: &DataSettings,
    vocab_size: usize,
    count: usize,
) -> Result<Inspection> {
    let mut reading = Reading::new(Some(tokenizer), settings, vocab_size, count)?;
    let read = match read_into(&mut reading, sources, Split::Train) {
        Ok(files) if files.is_empty() => {
            return Err(nothing_to_train(sources.first().map_or("".as_ref(), PathBuf::as_path)));
        }
        Ok(files) => Ok(files),
        Err(error) if reading.lengths.is_empty() && reading.report.read == 0 => return Err(error),
        Err(error) => Err(error),
    };
    let question = reading.question.take();
    let lengths = std::mem::take(&mut reading.lengths);
    let (kept, long) = (std::mem::take(&mut reading.kept), std::mem::take(&mut reading.long));
    let origins = std::mem::take(&mut reading.origins);
    let (report, refusal, examples) = match read.and_then(|files| reading.finish(&files)) {
        Ok(Dataset { report, examples }) => (Some(report), None, examples),
        Err(error) => (None, Some(error.to_string()), Vec::new()),
    };
    let shown = match settings.packing && !examples.is_empty() {
        true => packed(&examples, &origins, &kept, tokenizer, settings.max_seq_len, count)?,
        false => {
            let chosen = if kept.is_empty() { &long } else { &kept };
            answers(chosen.iter().take(count).map(|kept| shown(kept, None, tokenizer)))?
        }
    };
    Ok(Inspection { examples: shown, question, lengths, report, refusal })
}

/// The examples of the first slots, slot by slot.
fn packed(
    examples: &[Example],
    origins: &[Origin],
    kept: &[Kept],
    tokenizer: &Tokenizer,
    max_seq_len: usize,
    count: usize,
) -> Result<Vec<ShownExample>> {
    let slots = pack(examples, max_seq_len);
    let in_order = slots.iter().enumerate().flat_map(|(slot, of_slot)| of_slot.iter().map(move |&at| (slot + 1, at)));
    let show = |(slot, at): (usize, usize)| match kept.get(at) {
        Some(kept) => shown(kept, Some(slot), tokenizer),
        None => {
            let (example, origin) = (examples[at].clone(), origins[at].clone());
            shown(&Kept { example, origin, text: String::new(), ranges: Vec::new() }, Some(slot), tokenizer)
        }
    };
    answers(in_order.take(count).map(show))
}

/// The sequences of all examples, one after the other.
fn answers(examples: impl Iterator<Item = Result<Vec<ShownExample>>>) -> Result<Vec<ShownExample>> {
    Ok(examples.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Shows an example, and after a chosen answer the rejected one.
fn shown(kept: &Kept, slot: Option<usize>, tokenizer: &Tokenizer) -> Result<Vec<ShownExample>> {
    let found = match &kept.example.comparison {
        Comparison::None => return Ok(vec![shown_sequence(kept, slot, tokenizer)?]),
        Comparison::Rated { desirable, .. } => {
            if *desirable {
                "good"
            } else {
                "bad"
            }
        }
        Comparison::Rejected(other) => {
            let origin = Origin { change: Change::Whole, ..kept.origin.clone() };
            let other = Kept { example: (**other).clone(), origin, text: String::new(), ranges: Vec::new() };
            let [mut chosen, mut rejected] =
                [shown_sequence(kept, slot, tokenizer)?, shown_sequence(&other, slot, tokenizer)?];
            (chosen.found, rejected.found) = (Some("chosen"), Some("rejected"));
            return Ok(vec![chosen, rejected]);
        }
    };
    Ok(vec![ShownExample { found: Some(found), ..shown_sequence(kept, slot, tokenizer)? }])
}

fn shown_sequence(kept: &Kept, slot: Option<usize>, tokenizer: &Tokenizer) -> Result<ShownExample> {
    let Kept { example: Example { input_ids, trained, .. }, origin, text, ranges } = kept;
    let pieces = match ranges.is_empty() {
        true => pieces_of_tokens(input_ids, tokenizer)?,
        false => pieces_of_text(input_ids, text, ranges, tokenizer)?,
    };
    let token = |((&id, &trained), piece): ((&u32, &bool), Option<String>)| ShownToken {
        id,
        trained,
        continues: piece.is_none(),
        text: piece.unwrap_or_default(),
    };
    let tokens: Vec<_> = input_ids.iter().zip(trained).zip(pieces).map(token).collect();
    let text = match origin.change {
        Change::Whole | Change::TooLong if !text.is_empty() => text.clone(),
        _ => tokens.iter().map(|token| token.text.as_str()).collect(),
    };
    let change = match origin.change {
        Change::Whole => None,
        Change::CutFrom(tokens) => Some(format!("cut from {tokens} tokens")),
        Change::Piece(at, of) => Some(format!("piece {at} of {of}")),
        Change::TooLong => Some("longer than the longest sequence".to_owned()),
    };
    Ok(ShownExample { number: origin.number, shape: origin.shape, text, tokens, change, slot, found: None })
}
