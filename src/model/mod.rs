//! The model's files: `config.json`, the weights, and the rotary position table.

pub mod config;
pub(crate) mod json_fields;
pub mod model_directory;
pub mod packed;
pub mod rope;
pub(crate) mod safetensors_file;
pub mod shapes;
pub mod source;
pub mod tensors;
pub mod weight_files;
