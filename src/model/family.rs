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
    /// Biases of q, k and v.
    pub qkv_bias: Bias,
    /// Bias of the output projection of attention.
    pub o_bias: Bias,
    /// Biases of gate, up and down.
    pub mlp_bias: Bias,
    /// The norms of a layer.
    pub norms: &'static [Norm],
    /// The layers whose attention has a limited window.
    pub sliding_windows: SlidingWindows,
    /// `bos_token_id` where the key is absent.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` where the key is absent.
    pub eos_token_id: Option<u32>,
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

/// The layers that see a limited number of positions, and the keys of `config.json` that say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingWindows {
    /// Every layer sees all positions.
    Never,
    /// Every layer has the window of `sliding_window`.
    EveryLayer {
        /// Positions that a query sees where `sliding_window` is absent, its own included.
        default: usize,
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
    norms: &[Norm::Input, Norm::PostAttention],
    sliding_windows: SlidingWindows::Never,
    bos_token_id: None,
    eos_token_id: None,
};
