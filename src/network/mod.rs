//! The network on the device: where its weights and buffers lie, how they are loaded, and its passes forward and backward.

pub mod activations;
pub mod adapter;
pub mod base;
pub mod decoder;
pub mod dora;
pub mod experts;
pub mod head;
pub mod layer_rows;
pub mod linear_attention;
pub mod load;
pub mod moments;
pub mod narrow;
pub mod plan;
pub mod quantized_cache;
pub mod trained;
