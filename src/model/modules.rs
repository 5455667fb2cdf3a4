//! The modules of a decoder, by the names that transformers gives them. No other file spells one.

/// Name of the decoder without its head.
pub const MODEL: &str = "model";
/// Name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens";
/// Name of the list of layers; a layer's number follows it.
pub const LAYERS: &str = "model.layers";
/// Name of the norm after the last layer.
pub const FINAL_NORM: &str = "model.norm";
/// Name of the output head.
pub const HEAD: &str = "lm_head";
/// The activation of the feed-forward block, which has no tensor: its path below a layer.
pub const ACTIVATION: &str = "mlp.act_fn";
/// The layer whose outputs choose the experts: its path below a layer.
pub const ROUTER: &str = "mlp.gate";
/// The bias of each expert in the choice of experts: its path below a layer.
pub const EXPERT_BIAS: &str = "mlp.expert_bias";
/// The weights of a short convolution over rows, without the linear layers around it: its path below a layer.
pub const CONVOLUTION: &str = "conv.conv";
/// The sinks of attention, one logit for each head: their path below a layer.
pub const SINKS: &str = "self_attn.sinks";
/// The list of experts: its path below a layer.
pub const EXPERTS: &str = "mlp.experts";

/// The linear layers of one decoder layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Projection {
    /// Queries of attention, `[heads * head_dim, hidden]`.
    Q,
    /// Keys of attention, `[kv_heads * head_dim, hidden]`.
    K,
    /// Values of attention, `[kv_heads * head_dim, hidden]`.
    V,
    /// Output of attention, `[hidden, heads * head_dim]`.
    O,
    /// Input of the feed-forward block's activation, `[intermediate, hidden]`.
    Gate,
    /// Factor of the activation's result, `[intermediate, hidden]`.
    Up,
    /// Output of the feed-forward block, `[hidden, intermediate]`.
    Down,
    /// Input of a short convolution: its two gates and what it convolves, `[3 hidden, hidden]`.
    ConvIn,
    /// Output of a short convolution, `[hidden, hidden]`.
    ConvOut,
    /// Queries, keys and values of a gated delta rule before their convolution, `[2 key width + value width, hidden]`.
    LinearQkv,
    /// Gates on the output of a gated delta rule, `[value width, hidden]`.
    LinearGate,
    /// The share of a value that a gated delta rule writes, before its sigmoid, `[value heads, hidden]`.
    LinearBeta,
    /// The decay of a gated delta rule's state, before its softplus, `[value heads, hidden]`.
    LinearDecay,
    /// Output of a gated delta rule, `[hidden, value width]`.
    LinearOut,
    /// A layer's rows of the projection from token embeddings to the embeddings of layers, `[width, hidden]`.
    LayerEmbedding,
    /// Input of the activation beside a layer's embedding, `[width, hidden]`.
    LayerGate,
    /// From the gated embedding of a layer to its output, `[hidden, width]`.
    LayerOut,
}

impl Projection {
    /// Every projection, in the order in which lists of a layer's projections have them.
    pub const ALL: [Self; 17] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::ConvIn,
        Self::ConvOut,
        Self::LinearQkv,
        Self::LinearGate,
        Self::LinearBeta,
        Self::LinearDecay,
        Self::LinearOut,
        Self::LayerEmbedding,
        Self::LayerGate,
        Self::LayerOut,
    ];

    /// The projections that a layer of Llama has.
    pub const MOST_OF_LAYER: usize = 7;
    /// The projections of the part of a layer that reads other rows: attention, a short convolution or a gated delta rule.
    pub const OF_MIXER: [Self; 11] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::ConvIn,
        Self::ConvOut,
        Self::LinearQkv,
        Self::LinearGate,
        Self::LinearBeta,
        Self::LinearDecay,
        Self::LinearOut,
    ];
    /// The projections of a gated delta rule's input with an output for each feature of its values.
    pub const OF_LINEAR_VALUES: [Self; 2] = [Self::LinearQkv, Self::LinearGate];
    /// The projections with an output for each head of its values.
    pub const OF_LINEAR_HEADS: [Self; 2] = [Self::LinearBeta, Self::LinearDecay];

    /// The projections that read the input of attention: the gradient of that input is one sum over them.
    pub const OF_ATTENTION_INPUT: [Self; 3] = [Self::Q, Self::K, Self::V];
    /// The projections that read the input of the feed-forward block.
    pub const OF_FEED_FORWARD_INPUT: [Self; 2] = [Self::Gate, Self::Up];

    /// The projections of an expert, and of the feed-forward block in whose place experts are.
    pub const OF_EXPERTS: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// True for a projection of a gated delta rule.
    pub fn is_linear_attention(self) -> bool {
        matches!(self, Self::LinearQkv | Self::LinearGate | Self::LinearBeta | Self::LinearDecay | Self::LinearOut)
    }

    /// A number that no other projection of the same layer has: below [`Self::MOST_OF_LAYER`], or beyond those of all layers. Random draws
    /// depend on it.
    pub fn number(self) -> usize {
        match self {
            Self::Q | Self::ConvIn | Self::LinearQkv => 0,
            Self::K | Self::LinearGate => 1,
            Self::V | Self::LinearBeta => 2,
            Self::O | Self::ConvOut | Self::LinearOut => 3,
            Self::Gate => 4,
            Self::Up => 5,
            Self::Down => 6,
            Self::LayerEmbedding => 1 << 20,
            Self::LayerGate => (1 << 20) + 1,
            Self::LayerOut => (1 << 20) + 2,
            Self::LinearDecay => (1 << 20) + 3,
        }
    }

    /// The name below the layer of a projection of an expert, such as `mlp.experts.0.gate_proj`.
    pub fn module_of_expert(self, expert: usize) -> String {
        format!("{EXPERTS}.{expert}.{}", self.name())
    }

    /// Its name below the layer, such as `self_attn.q_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
            Self::ConvIn => "conv.in_proj",
            Self::ConvOut => "conv.out_proj",
            Self::LinearQkv => "linear_attn.in_proj_qkv",
            Self::LinearGate => "linear_attn.in_proj_z",
            Self::LinearBeta => "linear_attn.in_proj_b",
            Self::LinearDecay => "linear_attn.in_proj_a",
            Self::LinearOut => "linear_attn.out_proj",
            Self::LayerEmbedding => "per_layer_model_projection",
            Self::LayerGate => "per_layer_input_gate",
            Self::LayerOut => "per_layer_projection",
        }
    }

    /// The last part of [`Self::module`], such as `q_proj`.
    pub fn name(self) -> &'static str {
        last_part(self.module())
    }
}

/// The last part of a module's path, such as `q_proj`.
pub fn last_part(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, name)| name)
}

/// Linear layers of one input that are one layer in the files: the rows of its weight are those of the parts, one after the other. PEFT
/// trains one A for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Its name below the layer, such as `mlp.gate_up_proj`.
    pub path: &'static str,
    /// The parts in the order of their rows, neighbors in [`Projection::ALL`].
    pub parts: &'static [Projection],
}

/// The small tensors of a gated delta rule, beside its linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearPart {
    /// The weights of the convolution over queries, keys and values, `[2 key width + value width, 1, taps]`.
    Convolution,
    /// The logarithm of each value head's rate of decay, `[value heads]`.
    DecayLog,
    /// The addition to the decay's input, `[value heads]`.
    StepBias,
    /// The gains of the norm over each value head's output, `[value head size]`; no constant is added to them.
    Norm,
}

impl LinearPart {
    /// Every part.
    pub const ALL: [Self; 4] = [Self::Convolution, Self::DecayLog, Self::StepBias, Self::Norm];

    /// Its path below the layer, and the last part of its tensor's name where that has one.
    pub fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Convolution => ("linear_attn.conv1d", "weight"),
            Self::DecayLog => ("linear_attn.A_log", ""),
            Self::StepBias => ("linear_attn.dt_bias", ""),
            Self::Norm => ("linear_attn.norm", "weight"),
        }
    }
}

/// The place of an RMSNorm in a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before attention.
    Input,
    /// On the output of attention, before it is added to the residual stream.
    AttentionOutput,
    /// Before the feed-forward block.
    FeedForwardInput,
    /// On the output of the feed-forward block, before it is added to the residual stream.
    FeedForwardOutput,
    /// Over the queries.
    Query,
    /// Over the keys.
    Key,
    /// On the output of a layer's embedding, before it is added to the residual stream.
    LayerEmbedding,
}

impl Norm {
    /// Every place, in the order in which lists of a layer's norms have them.
    pub const ALL: [Self; 7] = [
        Self::Input,
        Self::AttentionOutput,
        Self::FeedForwardInput,
        Self::FeedForwardOutput,
        Self::Query,
        Self::Key,
        Self::LayerEmbedding,
    ];
}

/// The norms of a family's layers, each with its name below the layer. The name alone does not tell the place: the
/// `post_attention_layernorm` of Llama stands before the feed-forward block, that of Gemma 3 on the output of attention.
pub type NamedNorms = &'static [(Norm, &'static str)];

/// The features that a norm over queries and keys takes together, and its place beside the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadNorms {
    /// True for one norm over all heads of a row, false for one over each head.
    pub whole_row: bool,
    /// True if the norm reads queries and keys after their rotation.
    pub after_rope: bool,
}

/// The full name of a module of layer `layer` from its path below the layer.
pub fn in_layer(layer: usize, module: &str) -> String {
    format!("{LAYERS}.{layer}.{module}")
}
