//! Granite 3, and the dense models of Granite 4: Llama with factors on embedding, attention, residual stream and logits.

use crate::model::family::{AttentionScale, Bias, Family, PLAIN, Scale};
use crate::model::modules::{Fused, Projection};

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

/// The class of Granite 4 is one of mixtures and Mamba layers; its dense models have neither.
pub(super) static DENSE: Family = Family {
    model_type: "granitemoehybrid",
    architecture: "GraniteMoeHybridForCausalLM",
    intermediate_key: "shared_intermediate_size",
    paths: &[(Projection::Down, "shared_mlp.output_linear")],
    fused: &[Fused { path: "shared_mlp.input_linear", parts: &[Projection::Gate, Projection::Up] }],
    attention_only: Some("layer_types"),
    ..FAMILY
};
