//! Training data: text to tokens, files to examples, examples to micro-batches.

pub mod batches;
pub mod encode;
pub mod inspect;
pub mod packing;
#[cfg(not(target_arch = "wasm32"))]
mod parquet_file;
pub mod read;
mod records;
pub mod report;
pub mod sample;
pub mod settings;
pub mod template;
mod template_functions;
pub mod tokenizer;
pub mod turns;

/// One sequence and which of its tokens are trained on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub input_ids: Vec<u32>,
    /// Of the same length. The first token has nothing before it that could predict it, so its entry has no effect.
    pub trained: Vec<bool>,
}

impl Example {
    /// How many tokens the loss is taken over.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|trained| **trained).count()
    }
}
