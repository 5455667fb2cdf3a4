//! Gemma 4 as a text model (E2B, E4B): Gemma 2's norms without an offset, and what `src/model/gemma4.rs` reads.

use super::gemma3::{GEMMA, NORMS};
use crate::model::family::{AttentionScale, Family, PLAIN, RopeRule, SlidingWindows};
use crate::model::modules::Norm;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma4_text",
    architecture: "Gemma4ForCausalLM",
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
        (Norm::LayerEmbedding, "post_per_layer_input_norm"),
    ],
    gain_offset: 0.0,
    // The norms of queries and keys set the size of the scores.
    attention_scale: AttentionScale::One,
    final_softcap: Some(("final_logit_softcapping", None)),
    rope: RopeRule { theta: 1e4, proportional: true, ..PLAIN.rope },
    sliding_windows: SlidingWindows::Pattern { default: Some(512), pattern: 6 },
    gemma4: true,
    ..GEMMA
};
