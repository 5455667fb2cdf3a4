//! EXAONE 4: norms on the outputs of the blocks alone, and over each head of queries and keys.

use crate::model::family::{Family, PLAIN, RopeLayers, RopeRule, SlidingWindows};
use crate::model::modules::Norm;

pub(super) static FAMILY: Family = Family {
    model_type: "exaone4",
    architecture: "Exaone4ForCausalLM",
    num_kv_heads: Some(32),
    norms: &[
        (Norm::AttentionOutput, "post_attention_layernorm"),
        (Norm::FeedForwardOutput, "post_feedforward_layernorm"),
        (Norm::Query, "self_attn.q_norm"),
        (Norm::Key, "self_attn.k_norm"),
    ],
    rms_norm_eps: 1e-5,
    rope: RopeRule { layers: RopeLayers::Windowed, ..PLAIN.rope },
    sliding_windows: SlidingWindows::Pattern { default: Some(4096), pattern: 4 },
    bos_token_id: Some(0),
    eos_token_id: Some(2),
    ..PLAIN
};
