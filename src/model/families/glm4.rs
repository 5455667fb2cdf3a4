//! GLM-4 and GLM-4-0414: half of each head rotated in neighboring pairs, gate and up fused, and in the later one norms on the outputs.

use super::phi3::GATE_UP;
use crate::model::family::{Bias, Family, PLAIN, RopeRule};
use crate::model::modules::Norm;

pub(super) static GLM: Family = Family {
    model_type: "glm",
    architecture: "GlmForCausalLM",
    num_kv_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    qkv_bias: Bias::Key("attention_bias"),
    rms_norm_eps: 1.5625e-7,
    fused: &[GATE_UP],
    rope: RopeRule { partial: Some(0.5), interleaved: true, ..PLAIN.rope },
    ..PLAIN
};

pub(super) static GLM4: Family = Family {
    model_type: "glm4",
    architecture: "Glm4ForCausalLM",
    norms: &[
        (Norm::Input, "input_layernorm"),
        (Norm::AttentionOutput, "post_self_attn_layernorm"),
        (Norm::FeedForwardInput, "post_attention_layernorm"),
        (Norm::FeedForwardOutput, "post_mlp_layernorm"),
    ],
    ..GLM
};
