//! Qwen 3: norms over each head of queries and keys, and heads of a size of their own.

use crate::model::family::{Bias, Family, PLAIN, SlidingWindows};
use crate::model::modules::Norm;

pub(super) static FAMILY: Family = DENSE;

/// The values that the models with experts share.
pub(super) const DENSE: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    num_kv_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32_768,
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    norms: &[
        (Norm::Input, "input_layernorm"),
        (Norm::FeedForwardInput, "post_attention_layernorm"),
        (Norm::Query, "self_attn.q_norm"),
        (Norm::Key, "self_attn.k_norm"),
    ],
    sliding_windows: SlidingWindows::Chosen { default: 4096, default_first: 28 },
    ..PLAIN
};
