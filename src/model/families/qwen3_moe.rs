//! Qwen 3 with experts, such as Qwen3-30B-A3B: the attention of Qwen 3, and experts in place of feed-forward blocks.

use super::qwen3;
use crate::model::family::{ExpertKeys, ExpertRule, Family, SlidingWindows};
use crate::model::modules;

pub(super) static FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    num_kv_heads: Some(4),
    head_dim: None,
    experts: Some(&ExpertRule {
        keys: ExpertKeys::Qwen,
        router: modules::ROUTER,
        experts: modules::EXPERTS,
        projections: ["gate_proj", "up_proj", "down_proj"],
        bias: None,
    }),
    sliding_windows: SlidingWindows::Never,
    refused_flags: &[("use_sliding_window", "a window of attention in every layer, which no published model has")],
    ..qwen3::DENSE
};
