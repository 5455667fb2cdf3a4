//! Gemma 2: norms before and after each block, windows in every other layer, and bounded scores and logits.

use super::gemma3::{GEMMA, NORMS};
use crate::model::family::{AttentionScale, Family, SlidingWindows};

pub(super) static FAMILY: Family = Family {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    num_kv_heads: Some(4),
    activation_key: "hidden_activation",
    norms: &NORMS,
    attention_scale: AttentionScale::InverseSqrt { key: "query_pre_attn_scalar", default: 256.0 },
    attention_softcap: Some(("attn_logit_softcapping", Some(50.0))),
    final_softcap: Some(("final_logit_softcapping", Some(30.0))),
    sliding_windows: SlidingWindows::Pattern { default: Some(4096), pattern: 2 },
    ..GEMMA
};
