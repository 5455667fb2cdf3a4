//! LFM2 and LFM2.5: short convolutions in place of attention in most layers, and other names than Llama's. The larger model has experts.

use crate::model::family::{ExpertKeys, ExpertRule, Family, PLAIN, RopeRule};
use crate::model::modules::{Norm, Projection};

pub(super) static FAMILY: Family = DENSE;

/// LFM2-8B-A1B.
pub(super) static WITH_EXPERTS: Family = Family {
    model_type: "lfm2_moe",
    architecture: "Lfm2MoeForCausalLM",
    members: &["LFM2-8B-A1B"],
    experts: Some(&ExpertRule {
        keys: ExpertKeys::Lfm2,
        router: "feed_forward.gate",
        experts: "feed_forward.experts",
        projections: ["w1", "w3", "w2"],
        bias: Some("feed_forward.expert_bias"),
    }),
    ..DENSE
};

const DENSE: Family = Family {
    model_type: "lfm2",
    architecture: "Lfm2ForCausalLM",
    members: &["LFM2.5"],
    num_kv_heads: Some(8),
    max_position_embeddings: 128_000,
    convolutions: true,
    paths: &[
        (Projection::O, "self_attn.out_proj"),
        (Projection::Gate, "feed_forward.w1"),
        (Projection::Up, "feed_forward.w3"),
        (Projection::Down, "feed_forward.w2"),
    ],
    norms: &[
        (Norm::Input, "operator_norm"),
        (Norm::FeedForwardInput, "ffn_norm"),
        (Norm::Query, "self_attn.q_layernorm"),
        (Norm::Key, "self_attn.k_layernorm"),
    ],
    final_norm: "model.embedding_norm",
    rms_norm_eps_key: "norm_eps",
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: RopeRule { theta: 1e6, ..PLAIN.rope },
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
