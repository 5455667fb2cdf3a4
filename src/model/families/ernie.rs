//! ERNIE 4.5, the dense models: Llama whose rotation pairs neighboring features.

use crate::model::family::{Bias, Family, PLAIN, RopeRule};

pub(super) static FAMILY: Family = Family {
    model_type: "ernie4_5",
    architecture: "Ernie4_5ForCausalLM",
    num_kv_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    qkv_bias: Bias::Key("use_bias"),
    o_bias: Bias::Key("use_bias"),
    mlp_bias: Bias::Key("use_bias"),
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: RopeRule { theta: 5e5, interleaved: true, ..PLAIN.rope },
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    ..PLAIN
};
