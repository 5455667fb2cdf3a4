//! Gemma 1: norms with gains around 0, a scaled embedding, and GEGLU.

use super::gemma3::GEMMA;
use crate::model::family::Family;

pub(super) static FAMILY: Family = Family {
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    gelu_is_tanh: true,
    num_kv_heads: Some(16),
    ..GEMMA
};
