//! Shows a data set before training: its first examples token by token, and the lengths of all examples.

use std::path::Path;

use serde::Serialize;

use super::encode::{Encoded, Encoder};
use super::read::{DataReport, data_file, is_text, read_with, records};
use super::settings::{DataSettings, Shape};
use super::tokenizer::Tokenizer;
use crate::Result;

/// A token of an example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ShownToken {
    pub id: u32,
    /// Text of the token, or its spelling in the vocabulary if it has no text of its own.
    pub text: String,
    pub trained: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ShownExample {
    /// Line, record or row of the source.
    pub number: usize,
    pub shape: Shape,
    /// The whole text, as the chat template rendered it.
    pub text: String,
    pub tokens: Vec<ShownToken>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Inspection {
    pub examples: Vec<ShownExample>,
    /// Number of tokens of every example that could be encoded, before truncation.
    pub lengths: Vec<usize>,
    /// Report of the data that training would read.
    pub report: Option<DataReport>,
    /// The error with which training would refuse the data.
    pub refusal: Option<String>,
}

/// Encodes the data set as training would and keeps the first `count` examples with their text. The result also reports data that
/// training would refuse; only an unreadable file is an error.
pub fn inspect(
    path: &Path,
    tokenizer: &Tokenizer,
    settings: &DataSettings,
    vocab_size: usize,
    count: usize,
) -> Result<Inspection> {
    let (report, refusal, text_examples) = match read_with(path, Some(tokenizer), settings, vocab_size) {
        Ok(dataset) => (Some(dataset.report), None, dataset.examples),
        Err(error) => (None, Some(error.to_string()), Vec::new()),
    };
    let path = data_file(path)?;
    let (mut examples, mut lengths) = (Vec::new(), Vec::new());
    if is_text(&path) {
        for (index, example) in text_examples.into_iter().enumerate() {
            lengths.push(example.input_ids.len());
            if index < count {
                let text = tokenizer.decode_with_special(&example.input_ids)?;
                let encoded = Encoded { example, text, ranges: Vec::new(), ends: Vec::new(), notes: Vec::new() };
                examples.push(shown(index + 1, Shape::Text, &encoded, tokenizer)?);
            }
        }
        return Ok(Inspection { examples, lengths, report, refusal });
    }
    let encoder = Encoder::new(Some(tokenizer), settings, vocab_size);
    for record in records(&path)?.1 {
        let Ok((number, record)) = record else { break };
        let Ok((shape, Some(encoded))) = encoder.encode(&record) else { continue };
        lengths.push(encoded.example.input_ids.len());
        if examples.len() < count {
            examples.push(shown(number, shape, &encoded, tokenizer)?);
        }
    }
    Ok(Inspection { examples, lengths, report, refusal })
}

fn shown(number: usize, shape: Shape, encoded: &Encoded, tokenizer: &Tokenizer) -> Result<ShownExample> {
    let Encoded { example, text, ranges, .. } = encoded;
    let piece = |at: usize, id: u32| {
        let shares = |other: Option<&std::ops::Range<usize>>| other.is_some() && other == ranges.get(at);
        let alone = !shares(ranges.get(at + 1)) && !shares(at.checked_sub(1).and_then(|before| ranges.get(before)));
        let text = ranges.get(at).filter(|_| alone).and_then(|range| text.get(range.clone()));
        match text.filter(|text| !text.is_empty()) {
            Some(text) => text.to_owned(),
            None => tokenizer.token(id).unwrap_or_default(),
        }
    };
    let token = |(at, (&id, &trained))| ShownToken { id, text: piece(at, id), trained };
    let tokens = example.input_ids.iter().zip(&example.trained).enumerate().map(token).collect();
    let text = match text.is_empty() {
        true => tokenizer.decode_with_special(&example.input_ids)?,
        false => text.clone(),
    };
    Ok(ShownExample { number, shape, text, tokens })
}
