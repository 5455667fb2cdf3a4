//! A decoder family as data: the names that it goes by in `config.json`, and the values by which families differ.

use super::modules::Norm;
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
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub mlp_bias: Bias,
    /// The norms of a layer.
    pub norms: &'static [Norm],
    pub sliding_windows: SlidingWindows,
    /// `bos_token_id` and `eos_token_id` where the key is absent.
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

/// Biases of the linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Never,
    Always,
    /// As this key of `config.json` says; absent, there are none.
    Key(&'static str),
}

/// Which layers see a limited number of positions, by which keys of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingWindows {
    /// Every layer sees all positions.
    Never,
    /// Every layer has `sliding_window`; absent, it has `default`.
    EveryLayer { default: usize },
    /// `use_sliding_window` turns windows on; `layer_types` names the layers, or all from `max_window_layers` on have one.
    Chosen { default: usize, default_first: usize },
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
    norms: &[Norm::Input, Norm::PostAttention],
    sliding_windows: SlidingWindows::Never,
    bos_token_id: None,
    eos_token_id: None,
};
