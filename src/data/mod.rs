//! Training data: turns text into tokens, files into examples, and examples into micro-batches.

#[cfg(not(target_arch = "wasm32"))]
mod arrow_file;
pub mod batches;
pub mod columns;
#[cfg(test)]
mod damage;
pub mod encode;
pub mod fitting;
mod foreign_messages;
pub mod inspect;
mod leftovers;
#[cfg(not(target_arch = "wasm32"))]
pub mod logprobs;
pub mod messages;
mod opened;
pub mod packing;
#[cfg(not(target_arch = "wasm32"))]
mod parquet_file;
mod preference;
pub mod read;
pub mod record;
mod records;
pub mod report;
pub mod sample;
mod sentencepiece;
pub mod settings;
mod shown;
pub mod splits;
mod table;
pub mod teacher;
#[cfg(not(target_arch = "wasm32"))]
pub mod teacher_writer;
pub mod template;
mod template_functions;
pub mod tokenizer;
pub mod turns;
pub mod watch;

/// One sequence of token ids, and the tokens that are trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Token ids, in the order of the text.
    pub input_ids: Vec<u32>,
    /// True for each token that is trained on; as long as `input_ids`. The first entry has no effect, since no token precedes it.
    pub trained: Vec<bool>,
    /// Further sequences of the same record, where it is a preference.
    pub comparison: Comparison,
}

/// The feedback that a record holds beside its answer, with the sequence that the answer is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Comparison {
    /// None: the answer is to be learned.
    #[default]
    None,
    /// The answer was chosen, and this one, to the same prompt, was rejected.
    Rejected(Box<Example>),
    /// The answer alone was found good or bad.
    Rated {
        /// True where it was found good.
        desirable: bool,
        /// The prompt with the answer to another one, by which KTO estimates how far the model has moved. None until examples are
        /// put together.
        mismatched: Option<Box<Example>>,
    },
}

impl Example {
    /// An example of one sequence.
    pub fn new(input_ids: Vec<u32>, trained: Vec<bool>) -> Self {
        Self { input_ids, trained, comparison: Comparison::None }
    }

    /// The other sequence of the example, if it has one.
    pub fn other(&self) -> Option<&Self> {
        match &self.comparison {
            Comparison::None => None,
            Comparison::Rejected(other) => Some(other),
            Comparison::Rated { mismatched, .. } => mismatched.as_deref(),
        }
    }

    /// Its sequences: itself, and the one that it is compared with.
    pub fn sequences(&self) -> impl Iterator<Item = &Self> {
        [Some(self), self.other()].into_iter().flatten()
    }

    /// Number of tokens of all its sequences.
    pub fn tokens(&self) -> usize {
        self.sequences().map(|sequence| sequence.input_ids.len()).sum()
    }

    /// Number of tokens of its longest sequence.
    pub fn longest(&self) -> usize {
        self.sequences().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0)
    }

    /// Number of tokens in the loss.
    pub fn trained_tokens(&self) -> usize {
        self.sequences().map(|sequence| sequence.trained.iter().skip(1).filter(|trained| **trained).count()).sum()
    }
}
