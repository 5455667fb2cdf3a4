//! The tensors of a model: the one list from which planning, checking, counting, loading and initializing follow.

use super::config::{ModelConfig, Projection};

/// Name of the embedding's tensor.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Where the names of the layers' tensors begin; the layer's number follows.
const LAYERS: &str = "model.layers.";
/// Name of the output head's tensor, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

/// A tensor of a model in f32 on the host, by its name in the files.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Where in the network a norm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before attention.
    Input,
    /// Before the feed-forward part.
    PostAttention,
    /// Of each head of the queries (Qwen3).
    Query,
    /// Of each head of the keys (Qwen3).
    Key,
    /// After the last layer.
    Final,
}

/// The part that a tensor plays in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    Embedding,
    Head,
    Projection(Projection),
    Bias(Projection),
    Norm(Norm),
}

/// One tensor that a model of some configuration has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the model's files.
    pub name: String,
    /// `[out_features, in_features]` of a matrix, `[length]` of a norm's gain or a bias.
    pub shape: Vec<usize>,
    pub kind: TensorKind,
    /// The decoder layer that it belongs to.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// Whether the tensor is a matrix; the others are vectors, which the device holds in f32.
    pub fn is_matrix(&self) -> bool {
        matches!(self.kind, TensorKind::Embedding | TensorKind::Head | TensorKind::Projection(_))
    }

    /// Whether the tensor is a linear layer's matrix, and so in 4 bits where the files hold 4 bits.
    pub fn is_projection(&self) -> bool {
        matches!(self.kind, TensorKind::Projection(_))
    }

    /// Number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor of a model of this configuration, from the embedding up. A tied model has
/// no head of its own; a `lm_head.weight` that its files hold all the same is not read.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let hidden = config.hidden_size;
    let spec = |name: String, shape: Vec<usize>, kind, layer| TensorSpec { name, shape, kind, layer };
    let mut all = vec![spec(EMBEDDING.to_owned(), vec![config.vocab_size, hidden], TensorKind::Embedding, None)];
    for layer in 0..config.num_layers {
        let mut push = |module: &str, suffix: &str, shape: Vec<usize>, kind| {
            all.push(spec(format!("{LAYERS}{layer}.{module}.{suffix}"), shape, kind, Some(layer)));
        };
        push("input_layernorm", "weight", vec![hidden], TensorKind::Norm(Norm::Input));
        push("post_attention_layernorm", "weight", vec![hidden], TensorKind::Norm(Norm::PostAttention));
        if config.qk_norm {
            push("self_attn.q_norm", "weight", vec![config.head_dim], TensorKind::Norm(Norm::Query));
            push("self_attn.k_norm", "weight", vec![config.head_dim], TensorKind::Norm(Norm::Key));
        }
        for projection in Projection::ALL {
            let (rows, columns) = config.projection_shape(projection);
            push(projection.module(), "weight", vec![rows, columns], TensorKind::Projection(projection));
            if config.projection_has_bias(projection) {
                push(projection.module(), "bias", vec![rows], TensorKind::Bias(projection));
            }
        }
    }
    all.push(spec("model.norm.weight".to_owned(), vec![hidden], TensorKind::Norm(Norm::Final), None));
    if !config.tie_word_embeddings {
        all.push(spec(HEAD.to_owned(), vec![config.vocab_size, hidden], TensorKind::Head, None));
    }
    all
}

/// The same list in the order in which training reads and writes a whole model: first the matrices, then the vectors.
pub fn matrices_then_vectors(config: &ModelConfig) -> Vec<TensorSpec> {
    let (matrices, vectors): (Vec<_>, Vec<_>) = tensors(config).into_iter().partition(TensorSpec::is_matrix);
    matrices.into_iter().chain(vectors).collect()
}

/// Number of a whole model's parameters.
pub fn parameters(config: &ModelConfig) -> u64 {
    tensors(config).iter().map(|tensor| tensor.elements() as u64).sum()
}

/// Name of the weight of a layer's projection.
pub fn projection_name(layer: usize, projection: Projection) -> String {
    format!("{LAYERS}{layer}.{}.weight", projection.module())
}

/// Whether `name` is that of a layer's weight or bias.
pub fn is_layer_tensor(name: &str) -> bool {
    name.starts_with(LAYERS) && (name.ends_with(".weight") || name.ends_with(".bias"))
}
