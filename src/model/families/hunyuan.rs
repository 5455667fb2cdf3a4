//! Hunyuan, the dense models: norms over each head of queries and keys after their rotation.

use crate::model::family::{Bias, Family, PLAIN};
use crate::model::modules::{HeadNorms, Norm};

pub(super) static FAMILY: Family = Family {
    model_type: "hunyuan_v1_dense",
    architecture: "HunYuanDenseV1ForCausalLM",
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    norms: &[
        (Norm::Input, "input_layernorm"),
        (Norm::FeedForwardInput, "post_attention_layernorm"),
        (Norm::Query, "self_attn.query_layernorm"),
        (Norm::Key, "self_attn.key_layernorm"),
    ],
    head_norms: HeadNorms { whole_row: false, after_rope: true },
    rms_norm_eps: 1e-5,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
