//! OLMo 2 and 3: norms on the outputs of the blocks alone, and over whole queries and keys.

use crate::model::family::{Bias, Family, PLAIN, RopeOfWindows, RopeRule, SlidingWindows};
use crate::model::modules::{HeadNorms, Norm};

pub(super) static OLMO2: Family = Family {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    qkv_bias: Bias::Key("attention_bias"),
    o_bias: Bias::Key("attention_bias"),
    norms: &[
        (Norm::AttentionOutput, "post_attention_layernorm"),
        (Norm::FeedForwardOutput, "post_feedforward_layernorm"),
        (Norm::Query, "self_attn.q_norm"),
        (Norm::Key, "self_attn.k_norm"),
    ],
    head_norms: HeadNorms { whole_row: true, after_rope: false },
    rms_norm_eps: 1e-5,
    eos_token_id: Some(50_279),
    ..PLAIN
};

pub(super) static OLMO3: Family = Family {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    rope: RopeRule { theta: 5e5, of_windows: RopeOfWindows::Default, ..PLAIN.rope },
    sliding_windows: SlidingWindows::Pattern { default: Some(4096), pattern: 4 },
    ..OLMO2
};
