//! Training data: turns text into tokens, files into examples, and examples into micro-batches.

pub mod batches;
pub mod columns;
pub mod encode;
pub mod fitting;
pub mod inspect;
mod leftovers;
pub mod messages;
mod opened;
pub mod packing;
#[cfg(not(target_arch = "wasm32"))]
mod parquet_file;
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
pub mod template;
mod template_functions;
pub mod tokenizer;
pub mod turns;
pub mod watch;

/// One sequence of token ids, and the tokens that are trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, in the order of the text.
    pub input_ids: Vec<u32>,
    /// True for each token that is trained on; as long as `input_ids`. The first entry has no effect, since no token precedes it.
    pub trained: Vec<bool>,
}

impl Example {
    /// Number of tokens in the loss.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|trained| **trained).count()
    }
}
