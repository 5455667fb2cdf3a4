//! Gemma 3 as a text model: norms before and after each block, two rotary bases, and windows in most layers.

use crate::model::family::{AttentionScale, Bias, Family, PLAIN, RopeOfWindows, RopeRule, Scale, SlidingWindows};
use crate::model::modules::Norm;
use crate::ops::glu::Activation;

/// The values that Gemma 1 to 3 share.
pub(super) const GEMMA: Family = Family {
    head_dim: Some(256),
    max_position_embeddings: 8192,
    activation: Activation::GeluTanh,
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    gain_offset: 1.0,
    tie_word_embeddings: true,
    embedding_scale: Scale::SqrtHidden,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    ..PLAIN
};

/// The norms of Gemma 2, before and after each block.
pub(super) const NORMS: [(Norm, &str); 4] = [
    (Norm::Input, "input_layernorm"),
    (Norm::AttentionOutput, "post_attention_layernorm"),
    (Norm::FeedForwardInput, "pre_feedforward_layernorm"),
    (Norm::FeedForwardOutput, "post_feedforward_layernorm"),
];

pub(super) static FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    num_kv_heads: Some(4),
    max_position_embeddings: 131_072,
    activation_key: "hidden_activation",
    norms: &[
        NORMS[0],
        NORMS[1],
        NORMS[2],
        NORMS[3],
        (Norm::Query, "self_attn.q_norm"),
        (Norm::Key, "self_attn.k_norm"),
    ],
    attention_scale: AttentionScale::InverseSqrt { key: "query_pre_attn_scalar", default: 256.0 },
    final_softcap: Some(("final_logit_softcapping", None)),
    rope: RopeRule {
        theta: 1e6,
        of_windows: RopeOfWindows::Key { key: "rope_local_base_freq", default: 1e4 },
        ..PLAIN.rope
    },
    sliding_windows: SlidingWindows::Pattern { default: Some(4096), pattern: 6 },
    refused_flags: &[("use_bidirectional_attention", "an embedding model, which does not write text")],
    ..GEMMA
};
