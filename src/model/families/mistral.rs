//! Mistral: Llama with a sliding window in every layer.

use crate::model::family::{Family, PLAIN, SlidingWindows};

pub(super) static FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    num_kv_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_windows: SlidingWindows::EveryLayer { default: Some(4096) },
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
