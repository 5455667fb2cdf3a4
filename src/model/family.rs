//! A decoder family as data: the names that it goes by in `config.json`, and the values by which families differ.

use super::modules::{FINAL_NORM, Fused, HeadNorms, NamedNorms, Norm, Projection};
use crate::ops::glu::Activation;

/// One decoder family: what its `config.json` leaves out, and what no `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The one name in `architectures` of `config.json`.
    pub architecture: &'static str,
    /// Models of other names that are of this family, for messages.
    pub members: &'static [&'static str],
    /// `num_key_value_heads` where the key is absent; None is as many as query heads.
    pub num_kv_heads: Option<usize>,
    /// `head_dim` where the key is absent; None is the hidden size divided by the heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings` where the key is absent.
    pub max_position_embeddings: usize,
    /// `hidden_act` where the key is absent.
    pub activation: Activation,
    /// Biases of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the output projection of attention.
    pub o_bias: Bias,
    /// Biases of gate, up and down.
    pub mlp_bias: Bias,
    /// The key of the activation's name.
    pub activation_key: &'static str,
    /// True if the activation `gelu` is the tanh form.
    pub gelu_is_tanh: bool,
    /// The key of the feed-forward block's inner size.
    pub intermediate_key: &'static str,
    /// Linear layers that have another path below their layer than Llama's.
    pub paths: &'static [(Projection, &'static str)],
    /// Linear layers that are one in the files and for PEFT, with a row range for each part.
    pub fused: &'static [Fused],
    /// The norms of a layer.
    pub norms: NamedNorms,
    /// Name of the norm after the last layer.
    pub final_norm: &'static str,
    /// How the norms over queries and keys work, where `norms` has them.
    pub head_norms: HeadNorms,
    /// A constant that every norm adds to its gains.
    pub gain_offset: f32,
    /// The key of the constant that norms add to the mean square.
    pub rms_norm_eps_key: &'static str,
    /// Its value where the key is absent.
    pub rms_norm_eps: f64,
    /// `tie_word_embeddings` where the key is absent.
    pub tie_word_embeddings: bool,
    /// The factor on the embedding's rows.
    pub embedding_scale: Scale,
    /// The factor on the output of a block before it is added to the residual stream.
    pub residual_scale: Scale,
    /// The factor on a query's product with a key.
    pub attention_scale: AttentionScale,
    /// The key of the bound `c` of attention's scores, `c tanh(s / c)`, and its value where the key is absent.
    pub attention_softcap: Option<(&'static str, Option<f64>)>,
    /// True if each head of attention has a logit of its own in the softmax, which reads no value.
    pub attention_sinks: bool,
    /// The factor on the logits.
    pub logit_scale: Scale,
    /// The key of the bound `c` of the logits, `c tanh(z / c)`, and its value where the key is absent.
    pub final_softcap: Option<(&'static str, Option<f64>)>,
    /// The rotary position embedding.
    pub rope: RopeRule,
    /// The layers whose attention has a limited window.
    pub sliding_windows: SlidingWindows,
    /// The key that lists the kinds of layers, where only attention of all positions (`attention`) is supported.
    pub attention_only: Option<&'static str>,
    /// The keys and names of experts, where layers have them in place of the feed-forward block.
    pub experts: Option<&'static ExpertRule>,
    /// True if layers have short convolutions in place of attention, and the inner size is rounded, by the keys of LFM2.
    pub convolutions: bool,
    /// True if layers have a gated delta rule in place of attention, and the others gates on the output of attention, by the keys of
    /// Qwen3.5.
    pub linear_attention: bool,
    /// True if layers have two sizes of heads, shared keys and embeddings of their own, by the keys of Gemma 4.
    pub gemma4: bool,
    /// Flags of `config.json` that must not be true, and what a model with them is.
    pub refused_flags: &'static [(&'static str, &'static str)],
    /// `bos_token_id` where the key is absent.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` where the key is absent.
    pub eos_token_id: Option<u32>,
}

/// The keys of `config.json` and the names in the files that a family has for its experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertRule {
    /// The family whose keys say which layers have experts, and how they are chosen.
    pub keys: ExpertKeys,
    /// The layer whose outputs choose the experts: its path below a layer.
    pub router: &'static str,
    /// The list of experts: its path below a layer.
    pub experts: &'static str,
    /// Gate, up and down of an expert below its number.
    pub projections: [&'static str; 3],
    /// The bias of the choice of experts: its path below a layer, where there is one.
    pub bias: Option<&'static str>,
}

/// The families whose keys describe experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertKeys {
    /// Qwen3-MoE.
    Qwen,
    /// LFM2-MoE.
    Lfm2,
    /// gpt-oss.
    GptOss,
}

/// The rule by which linear layers of a family have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// No model of the family has them.
    Never,
    /// Every model of the family has them.
    Always,
    /// This key of `config.json` says so. Where it is absent, there are none.
    Key(&'static str),
}

/// The rule for a factor of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// 1.
    One,
    /// The square root of the hidden size.
    SqrtHidden,
    /// The value of a key; 1 where it is absent.
    Key(&'static str),
    /// 1 divided by the value of a key; 1 where it is absent.
    Reciprocal(&'static str),
}

/// The rule for the factor on a query's product with a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionScale {
    /// 1 divided by the square root of the head size.
    HeadSize,
    /// 1 divided by the square root of a key's value.
    InverseSqrt {
        /// The key.
        key: &'static str,
        /// The value where the key is absent.
        default: f64,
    },
    /// The value of a key; 1 where it is absent.
    Key(&'static str),
    /// 1.
    One,
}

/// The rotary position embedding of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeRule {
    /// `rope_theta` where the key is absent.
    pub theta: f64,
    /// `partial_rotary_factor` where the key is absent; None if every feature of a head is rotated.
    pub partial: Option<f64>,
    /// True if neighboring features form a pair, false if features half a head apart do.
    pub interleaved: bool,
    /// What layers with a window have in place of the parameters of the others.
    pub of_windows: RopeOfWindows,
    /// The layers that are rotated.
    pub layers: RopeLayers,
    /// True if the default of layers without a window is Gemma 4's: a base of 1e6, of which a quarter of the pairs turns.
    pub proportional: bool,
    /// True if queries grow with the logarithm of their position, by `llama_4_scaling_beta`.
    pub query_scaling: bool,
}

/// The rotary parameters of layers with a window, where `config.json` has one set of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeOfWindows {
    /// Those of the other layers.
    Same,
    /// No scaling, and the base of this key.
    Key {
        /// The key.
        key: &'static str,
        /// The base where the key is absent.
        default: f64,
    },
    /// No scaling, and the family's default base.
    Default,
}

/// The layers whose queries and keys are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayers {
    /// Every layer.
    All,
    /// `no_rope_layers` lists 1 for layers with rotation and 0 for those without. Where it is absent, every `no_rope_layer_interval`-th
    /// layer has none.
    Listed {
        /// `no_rope_layer_interval` where the key is absent.
        interval: usize,
    },
    /// Layers with a window, if there are any; otherwise every layer.
    Windowed,
}

/// The layers that see a limited number of positions, and the keys of `config.json` that say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingWindows {
    /// Every layer sees all positions.
    Never,
    /// Every layer has the window of `sliding_window`.
    EveryLayer {
        /// Positions that a query sees where `sliding_window` is absent, its own included; None is all before it.
        default: Option<usize>,
    },
    /// `layer_types` names the layers; where it is absent, all but every `sliding_window_pattern`-th have a window.
    Pattern {
        /// Positions that a query of such a layer sees where `sliding_window` is absent; None is all before it.
        default: Option<usize>,
        /// `sliding_window_pattern` where the key is absent.
        pattern: usize,
    },
    /// `use_sliding_window` turns windows on; `layer_types` names the layers, or all from `max_window_layers` on have one.
    Chosen {
        /// Positions that a query of such a layer sees where `sliding_window` is absent, its own included.
        default: usize,
        /// The first layer with a window, where `max_window_layers` is absent.
        default_first: usize,
    },
}

/// The values that most families share. A family file names those that differ.
pub(super) const PLAIN: Family = Family {
    model_type: "",
    architecture: "",
    members: &[],
    num_kv_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    activation: Activation::Silu,
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    activation_key: "hidden_act",
    gelu_is_tanh: false,
    intermediate_key: "intermediate_size",
    paths: &[],
    fused: &[],
    norms: &[(Norm::Input, "input_layernorm"), (Norm::FeedForwardInput, "post_attention_layernorm")],
    final_norm: FINAL_NORM,
    head_norms: HeadNorms { whole_row: false, after_rope: false },
    gain_offset: 0.0,
    rms_norm_eps_key: "rms_norm_eps",
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    embedding_scale: Scale::One,
    residual_scale: Scale::One,
    attention_scale: AttentionScale::HeadSize,
    attention_softcap: None,
    attention_sinks: false,
    logit_scale: Scale::One,
    final_softcap: None,
    rope: RopeRule {
        theta: 10_000.0,
        partial: None,
        interleaved: false,
        of_windows: RopeOfWindows::Same,
        layers: RopeLayers::All,
        proportional: false,
        query_scaling: false,
    },
    sliding_windows: SlidingWindows::Never,
    attention_only: None,
    experts: None,
    convolutions: false,
    linear_attention: false,
    gemma4: false,
    refused_flags: &[],
    bos_token_id: None,
    eos_token_id: None,
};
