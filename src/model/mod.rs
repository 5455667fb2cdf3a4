//! The model's files: `config.json`, the weights, and the rotary position table.

pub mod companions;
pub mod config;
pub mod convolutions;
pub mod experts;
pub mod families;
pub mod family;
pub mod foreign;
pub mod gemma4;
pub(crate) mod gguf_blocks;
pub(crate) mod gguf_config;
pub(crate) mod gguf_file;
pub(crate) mod gguf_tensors;
pub(crate) mod gguf_tokenizer;
pub(crate) mod json_fields;
pub mod listing;
pub mod model_directory;
pub mod modules;
pub mod packed;
pub mod rope;
pub(crate) mod safetensors_file;
mod safetensors_index;
pub mod shapes;
pub mod source;
pub mod tensor_source;
pub mod tensors;
mod unsupported;
pub mod wrapper;
