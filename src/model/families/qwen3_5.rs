//! Qwen 3.5, 3.6 and 3.8: a gated delta rule in place of attention in most layers, and gates on the output of attention in the others.

use crate::model::family::{Bias, Family, PLAIN, RopeRule};
use crate::model::modules::Norm;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_5_text",
    architecture: "Qwen3_5ForCausalLM",
    members: &["Qwen3.6", "Qwen3.8"],
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 32_768,
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    norms: &[
        (Norm::Input, "input_layernorm"),
        (Norm::FeedForwardInput, "post_attention_layernorm"),
        (Norm::Query, "self_attn.q_norm"),
        (Norm::Key, "self_attn.k_norm"),
    ],
    gain_offset: 1.0,
    rope: RopeRule { partial: Some(0.25), ..PLAIN.rope },
    linear_attention: true,
    ..PLAIN
};
