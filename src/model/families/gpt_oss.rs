//! gpt-oss: experts with biases, sinks in the softmax of attention, and windows in every other layer.

use crate::model::family::{Bias, ExpertKeys, ExpertRule, Family, PLAIN, RopeRule, SlidingWindows};
use crate::model::modules;
use crate::ops::glu::Activation;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_oss",
    architecture: "GptOssForCausalLM",
    num_kv_heads: Some(8),
    head_dim: Some(64),
    max_position_embeddings: 131_072,
    activation: Activation::Clamped,
    qkv_bias: Bias::Always,
    o_bias: Bias::Always,
    rms_norm_eps: 1e-5,
    attention_sinks: true,
    rope: RopeRule { theta: 150_000.0, ..PLAIN.rope },
    sliding_windows: SlidingWindows::Pattern { default: Some(128), pattern: 2 },
    experts: Some(&ExpertRule {
        keys: ExpertKeys::GptOss,
        router: "mlp.router",
        experts: modules::EXPERTS,
        // One tensor of all experts in the files, which `gpt_oss.rs` lists under these names.
        projections: ["gate_proj", "up_proj", "down_proj"],
        bias: None,
    }),
    ..PLAIN
};
