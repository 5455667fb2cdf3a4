//! Ministral 3 as a text model: Mistral whose queries grow with the logarithm of their position.

use crate::model::family::{Family, PLAIN, RopeRule, SlidingWindows};

pub(super) static FAMILY: Family = Family {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    num_kv_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    rms_norm_eps: 1e-5,
    rope: RopeRule { theta: 1e6, query_scaling: true, ..PLAIN.rope },
    sliding_windows: SlidingWindows::EveryLayer { default: None },
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
