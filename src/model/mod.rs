//! The model's files: `config.json`, the weights, and the rotary position table.

pub mod config;
pub(crate) mod json_fields;
pub mod rope;
pub(crate) mod safetensors_file;
pub mod weight_files;
