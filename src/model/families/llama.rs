//! Llama 1 to 3, and the many models of the same shape.

use crate::model::family::{Bias, Family, PLAIN};

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    members: &["SmolLM2", "TinyLlama"],
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
