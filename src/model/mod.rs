//! The model's files: `config.json`, the weights, and the rotary position table.

pub mod activations;
pub mod config;
pub mod decoder;
pub(crate) mod json_fields;
pub mod load;
pub mod model_directory;
pub mod network;
pub mod packed;
pub mod quantized_cache;
pub mod rope;
pub(crate) mod safetensors_file;
pub mod shapes;
pub mod summary;
pub mod trained;
pub mod weight_files;
