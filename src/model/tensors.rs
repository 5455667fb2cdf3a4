//! The tensors of a model: the one list from which planning, checking, counting, loading and initializing follow.

use super::config::ModelConfig;
use super::gemma4;
use super::modules::{self, LinearPart, Norm, Projection, in_layer};

/// Name of the embedding's tensor.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output head's tensor, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

/// A tensor of a model in f32 on the host, by its name in the files.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// The name in the model's files.
    pub name: String,
    /// Sizes of the dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// The values, row by row.
    pub values: Vec<f32>,
}

/// The part that a tensor plays in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// The matrix with a row for each token, `[vocabulary, hidden]`.
    Embedding,
    /// The matrix from hidden states to logits, `[vocabulary, hidden]`, where it is not the embedding.
    Head,
    /// The matrix of a layer's projection, `[out_features, in_features]`.
    Projection(Projection),
    /// The matrix from a layer's rows to logits of its experts, `[experts, hidden]`.
    Router,
    /// The matrix of a projection of one of a layer's experts, `[out_features, in_features]`.
    Expert(usize, Projection),
    /// The bias of the router, `[experts]`.
    RouterBias,
    /// The biases of a projection of all of a layer's experts, `[experts, out_features]`.
    ExpertBiases(Projection),
    /// The bias of each expert in the choice of a layer's experts, `[experts]`.
    ExpertBias,
    /// The bias of a layer's projection, `[out_features]`.
    Bias(Projection),
    /// The gains of a norm in a layer.
    Norm(Norm),
    /// The sinks of a layer's attention, `[heads]`.
    Sinks,
    /// The weights of a layer's short convolution, `[hidden, 1, taps]`.
    Convolution,
    /// A small tensor of a layer's gated delta rule.
    Linear(LinearPart),
    /// The embeddings of every token for all layers, `[vocabulary, layers * width]`, which stay in the files.
    LayerEmbeddings,
    /// The gains of the norm over the projected embeddings of a layer, `[width]`.
    LayerEmbeddingNorm,
    /// The factor on a layer's result, `[1]`.
    LayerScalar,
    /// The gains of the norm after the last layer, `[hidden]`.
    FinalNorm,
}

/// One tensor that a model of some configuration has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the model's files.
    pub name: String,
    /// `[out_features, in_features]` of a matrix, `[length]` of a norm's gain or a bias, `[channels, 1, taps]` of a convolution.
    pub shape: Vec<usize>,
    /// The part that it plays.
    pub kind: TensorKind,
    /// The decoder layer that it belongs to.
    pub layer: Option<usize>,
}

impl TensorSpec {
    /// True for a matrix. The other tensors are vectors, or as small as vectors; the device holds them in f32.
    pub fn is_matrix(&self) -> bool {
        use TensorKind::{
            Bias, Convolution, ExpertBias, FinalNorm, LayerEmbeddingNorm, LayerScalar, Linear, Norm, Sinks,
        };
        use TensorKind::{ExpertBiases, RouterBias};
        let vectors = matches!(
            self.kind,
            Bias(_) | ExpertBias | ExpertBiases(_) | RouterBias | Norm(_) | Convolution | Linear(_) | Sinks
        );
        !vectors && !matches!(self.kind, FinalNorm | LayerEmbeddingNorm | LayerScalar)
    }

    /// True for the matrix of a linear layer or an expert, which quantized files hold in 4 bits. The router stays as it is.
    pub fn is_projection(&self) -> bool {
        matches!(self.kind, TensorKind::Projection(_) | TensorKind::Expert(..))
    }

    /// Number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every tensor of a model of this configuration, from the embedding up. A tied model has
/// no head of its own; the files may hold one all the same, which is not read.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let hidden = config.hidden_size;
    let mut all = Vec::new();
    let mut push = |module: &str, suffix: &str, shape: Vec<usize>, kind, layer: Option<usize>| {
        let module = layer.map_or_else(|| module.to_owned(), |layer| in_layer(layer, module));
        let name = if suffix.is_empty() { module } else { format!("{module}.{suffix}") };
        all.push(TensorSpec { name, shape, kind, layer });
    };
    push(modules::EMBEDDING, "weight", vec![config.vocab_rows, hidden], TensorKind::Embedding, None);
    if let Some(of) = config.layer_embeddings() {
        let shape = vec![of.vocab_size, config.num_layers * of.width];
        push(gemma4::TABLE, "weight", shape, TensorKind::LayerEmbeddings, None);
        push(gemma4::PROJECTION_NORM, "weight", vec![of.width], TensorKind::LayerEmbeddingNorm, None);
        // One tensor in the files, whose parts are written one after the other.
        let part = Projection::LayerEmbedding;
        for layer in 0..config.num_layers {
            push(part.module(), "weight", vec![of.width, hidden], TensorKind::Projection(part), Some(layer));
        }
    }
    for at in 0..config.num_layers {
        let layer = Some(at);
        if config.gemma4.is_some() {
            push(gemma4::LAYER_SCALAR, "", vec![1], TensorKind::LayerScalar, layer);
        }
        for (norm, name) in config.norms.iter().filter(|(norm, _)| config.layer_has_norm(at, *norm)) {
            push(name, "weight", vec![config.norm_length(at, *norm)], TensorKind::Norm(*norm), layer);
        }
        if let Some(experts) = config.experts_of(at) {
            push(modules::ROUTER, "weight", vec![experts.count, hidden], TensorKind::Router, layer);
            if experts.biased {
                push(modules::EXPERT_BIAS, "", vec![experts.count], TensorKind::ExpertBias, layer);
            }
            if experts.with_biases {
                push(modules::ROUTER, "bias", vec![experts.count], TensorKind::RouterBias, layer);
            }
            for projection in Projection::OF_EXPERTS {
                let (rows, columns) = config.expert_shape(experts, projection);
                if experts.with_biases {
                    let (suffix, kind) = (format!("{}_bias", projection.name()), TensorKind::ExpertBiases(projection));
                    push(modules::EXPERTS, &suffix, vec![experts.count, rows], kind, layer);
                }
                for expert in 0..experts.count {
                    let kind = TensorKind::Expert(expert, projection);
                    push(&projection.module_of_expert(expert), "weight", vec![rows, columns], kind, layer);
                }
            }
        }
        if config.attention_sinks {
            push(modules::SINKS, "", vec![config.num_heads], TensorKind::Sinks, layer);
        }
        if let Some(convolutions) = config.convolutions.as_ref().filter(|_| config.is_convolution(at)) {
            push(modules::CONVOLUTION, "weight", vec![hidden, 1, convolutions.taps], TensorKind::Convolution, layer);
        }
        if let Some(linear) = config.linear_attention.as_ref().filter(|_| config.is_linear_attention(at)) {
            for part in LinearPart::ALL {
                let (module, suffix) = part.name();
                push(module, suffix, linear.part_shape(part), TensorKind::Linear(part), layer);
            }
        }
        let own = |projection: &Projection| {
            *projection != Projection::LayerEmbedding && config.has_projection(at, *projection)
        };
        for projection in Projection::ALL.into_iter().filter(own) {
            let (rows, columns) = config.layer_shape(at, projection);
            push(projection.module(), "weight", vec![rows, columns], TensorKind::Projection(projection), layer);
            if config.projection_has_bias(projection) {
                push(projection.module(), "bias", vec![rows], TensorKind::Bias(projection), layer);
            }
        }
    }
    push(config.family.final_norm, "weight", vec![hidden], TensorKind::FinalNorm, None);
    if !config.tie_word_embeddings {
        push(modules::HEAD, "weight", vec![config.vocab_rows, hidden], TensorKind::Head, None);
    }
    all
}

/// The list of [`tensors`] in the order in which training reads and writes a whole model: the matrices, then the vectors.
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
    format!("{}.weight", in_layer(layer, projection.module()))
}

/// True if `name` is the name of a layer's weight or bias.
pub fn is_layer_tensor(name: &str) -> bool {
    let of_layer = name.strip_prefix(modules::LAYERS).is_some_and(|rest| rest.starts_with('.'));
    of_layer && (name.ends_with(".weight") || name.ends_with(".bias"))
}

/// Name of the weight of a projection of an expert.
pub fn expert_name(layer: usize, expert: usize, projection: Projection) -> String {
    format!("{}.weight", in_layer(layer, &projection.module_of_expert(expert)))
}

/// The names of the modules that cannot get an adapter: those of every tensor that is no projection, the modules
/// above them, and the activation. Layer 0 stands for all layers, and with experts, convolutions or a gated delta rule the first layer
/// that has them or has attention.
pub fn modules_without_projections(config: &ModelConfig) -> Vec<String> {
    let mut names = vec![in_layer(0, modules::ACTIVATION)];
    let with_experts = config.experts.as_ref().and_then(|experts| experts.layers.iter().position(|has| *has));
    let first = |is: &dyn Fn(usize) -> bool| (0..config.num_layers).find(|layer| is(*layer));
    let convolution = first(&|layer| config.is_convolution(layer));
    let linear = first(&|layer| config.is_linear_attention(layer));
    let firsts = [with_experts, convolution, linear, first(&|layer| config.has_attention(layer))];
    let stands = |layer: usize| layer == 0 || firsts.contains(&Some(layer));
    for tensor in tensors(config).iter().filter(|tensor| tensor.layer.is_none_or(stands)) {
        let rule = config.family.experts.filter(|_| config.adapts_feed_forward());
        let path = match (tensor.kind, rule) {
            (TensorKind::Projection(projection), _) => Some(config.path(projection)),
            // transformers has one parameter of all experts there, and no module for each.
            (TensorKind::Expert(..) | TensorKind::ExpertBiases(_), Some(rule)) => Some(rule.experts),
            (TensorKind::Router | TensorKind::RouterBias | TensorKind::ExpertBias, Some(rule)) => Some(rule.router),
            _ => None,
        };
        let own_path = path.zip(tensor.layer).map(|(path, layer)| format!("{}.weight", in_layer(layer, path)));
        let mut module = own_path.as_deref().unwrap_or(&tensor.name);
        let mut own = true;
        while let Some((above, _)) = module.rsplit_once('.') {
            module = above;
            let linear = own && matches!(tensor.kind, TensorKind::Projection(_) | TensorKind::Bias(_));
            own = false;
            if !linear && !names.iter().any(|name| name == module) {
                names.push(module.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn qwen3() -> ModelConfig {
        let text = r#"{"model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}"#;
        ModelConfig::from_json(Path::new("config.json"), text).unwrap()
    }

    #[test]
    fn the_list_has_the_names_of_transformers() {
        let all = tensors(&qwen3());
        let names: Vec<&str> = all.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!((names[0], names[names.len() - 1]), (EMBEDDING, HEAD));
        assert_eq!(names.len(), 3 + 2 * 11);
        for name in ["model.layers.1.self_attn.k_norm.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
        {
            assert!(names.contains(&name), "{name}");
        }
        let layers = all.iter().filter(|tensor| tensor.layer.is_some());
        assert!(layers.clone().all(|tensor| is_layer_tensor(&tensor.name)) && layers.count() == 22);
        assert!(!is_layer_tensor(EMBEDDING));
        assert_eq!(projection_name(1, Projection::Up), "model.layers.1.mlp.up_proj.weight");
    }

    #[test]
    fn modules_without_projections_are_all_others() {
        let mut names = modules_without_projections(&qwen3());
        names.sort();
        let of_layer = ["", ".input_layernorm", ".mlp", ".mlp.act_fn", ".post_attention_layernorm", ".self_attn"];
        let norms = [".self_attn.k_norm", ".self_attn.q_norm"];
        let mut expected: Vec<String> =
            of_layer.into_iter().chain(norms).map(|module| format!("model.layers.0{module}")).collect();
        expected.extend(["lm_head", "model", "model.embed_tokens", "model.layers", "model.norm"].map(str::to_owned));
        expected.sort();
        assert_eq!(names, expected);
    }
}
