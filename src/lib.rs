//! loraine fine-tunes decoder-only language models (LoRA, QLoRA) with WGSL compute shaders on wgpu.

pub mod data;
mod error;
pub mod files;
pub mod gpu;
pub mod infer;
pub mod lora;
pub mod model;
pub mod ops;
pub mod quant;
pub mod random;
pub mod train;

pub use error::{Error, Result};
