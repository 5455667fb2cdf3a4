//! Qwen 2 and 2.5: biases on queries, keys and values, and windows in some layers.

use crate::model::family::{Bias, Family, PLAIN, SlidingWindows};

pub(super) static FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    num_kv_heads: Some(32),
    max_position_embeddings: 32_768,
    qkv_bias: Bias::Always,
    sliding_windows: SlidingWindows::Chosen { default: 4096, default_first: 28 },
    ..PLAIN
};
