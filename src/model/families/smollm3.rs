//! SmolLM3: Llama with layers whose queries and keys are not rotated.

use crate::model::family::{Bias, Family, PLAIN, RopeLayers, RopeRule, SlidingWindows};

pub(super) static FAMILY: Family = Family {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    num_kv_heads: Some(4),
    max_position_embeddings: 32_768,
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    mlp_bias: Bias::Key("mlp_bias"),
    tie_word_embeddings: true,
    rope: RopeRule { theta: 2e6, layers: RopeLayers::Listed { interval: 4 }, ..PLAIN.rope },
    sliding_windows: SlidingWindows::Chosen { default: 4096, default_first: 28 },
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
    ..PLAIN
};
