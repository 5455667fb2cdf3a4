//! Granite 3: Llama with factors on embedding, attention, residual stream and logits.

use crate::model::family::{AttentionScale, Bias, Family, PLAIN, Scale};

pub(super) static FAMILY: Family = Family {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    embedding_scale: Scale::Key("embedding_multiplier"),
    residual_scale: Scale::Key("residual_multiplier"),
    attention_scale: AttentionScale::Key("attention_multiplier"),
    logit_scale: Scale::Reciprocal("logits_scaling"),
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
