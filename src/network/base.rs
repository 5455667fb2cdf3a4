//! The frozen base on the device: which matrices a decoder has, in which storage, planned without reading a weight.

use super::experts::ExpertLayer;
use crate::gpu::{Category, MemoryPlan, View};
use crate::model::config::ModelConfig;
use crate::model::gemma4::{LAYER_SCALAR, PROJECTION_NORM};
use crate::model::modules::{CONVOLUTION, LinearPart, Norm, Projection, ROUTER, SINKS, in_layer};
use crate::model::tensors::{EMBEDDING, HEAD, TensorKind, TensorSpec, expert_name, projection_name, tensors};
use crate::ops::weight::{Rows, Weight};
use crate::quant::format::{Float, Format4, Storage};
use crate::setting::{DOUBLE_QUANT, METHOD, QUANT};
use crate::{Error, Result};

/// One decoder layer's frozen tensors. Gains and biases are f32.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Gains by place, in the order of [`Norm::ALL`]; None where the model has no such norm.
    norms: [Option<View>; Norm::ALL.len()],
    /// Matrices and biases in the order of [`Projection::ALL`]; None where the layer has no such projection.
    projections: [Option<Weight>; Projection::ALL.len()],
    /// The experts in place of the feed-forward block.
    pub experts: Option<ExpertLayer>,
    /// The sink of each head of attention, f32 `[heads]`, where the model has sinks.
    pub sinks: Option<View>,
    /// The weights of the short convolution in place of attention, f32 `[hidden][taps]`.
    pub convolution: Option<View>,
    /// The small tensors of the gated delta rule in place of attention, f32, in the order of [`LinearPart::ALL`].
    linear: Option<[View; LinearPart::ALL.len()]>,
    /// The factor on the layer's result, once for each column, f32 `[hidden]`, where the layer has one.
    pub scalar: Option<View>,
}

impl Layer {
    /// The gains of the norm at this place, of [`ModelConfig::norm_length`]; None where the model has no such norm.
    pub fn norm(&self, norm: Norm) -> Option<View> {
        self.norms[norm as usize]
    }

    /// A small tensor of the layer's gated delta rule; None where the layer has none.
    pub fn linear_part(&self, part: LinearPart) -> Option<View> {
        Some(self.linear.as_ref()?[part as usize])
    }

    /// The matrix of a projection that the layer has, `[out_features, in_features]`, and its bias.
    pub fn projection(&self, projection: Projection) -> &Weight {
        self.find_projection(projection).expect("a pass asks for projections that the layer has")
    }

    /// The matrix of a projection; None where the layer has no such projection.
    pub fn find_projection(&self, projection: Projection) -> Option<&Weight> {
        self.projections[projection as usize].as_ref()
    }
}

/// The base on the device. It is frozen, unless [`super::trained`] trains it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Sizes and settings of the model.
    pub config: ModelConfig,
    /// One row for each token, `[vocabulary, hidden]`.
    pub embedding: Weight,
    /// Decoder layers, in the order in which they run.
    pub layers: Vec<Layer>,
    /// Gains of the norm after the last layer, f32 `[hidden]`.
    pub final_norm: View,
    /// The matrix from hidden states to logits, `[vocabulary, hidden]`; `None` where the embedding is the head too.
    pub untied_head: Option<Weight>,
    /// Gains of the norm over the projected embeddings of a layer, f32 `[width]`, where layers have such.
    pub layer_embedding_norm: Option<View>,
    /// Gains of 1 for the norm over values, f32 `[head_dim]`, where there is one.
    pub ones: Option<View>,
    /// The tables of each of the configuration's rotary position embeddings.
    pub rope_tables: Vec<RopeTables>,
    /// Positions that the tables cover, and so the longest sequence.
    pub max_positions: usize,
}

/// Cosine and sine of each angle of a rotary position embedding, f32 `[position][rotated / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct RopeTables {
    /// The table of keys.
    pub keys: View,
    /// The table of queries: that of keys, unless queries grow with their position.
    pub queries: View,
}

impl Network {
    /// The matrix from hidden states to logits, `[vocabulary, hidden]`.
    pub fn head(&self) -> &Weight {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix, in the order of the model's list of tensors.
    pub fn weights(&self) -> impl Iterator<Item = (TensorSpec, &Weight)> {
        tensors(&self.config).into_iter().filter_map(|tensor| {
            let weight = self.matrix(&tensor)?;
            Some((tensor, weight))
        })
    }

    /// Every f32 vector, in the order of the model's list of tensors.
    pub fn vectors(&self) -> impl Iterator<Item = (TensorSpec, View)> {
        tensors(&self.config).into_iter().filter_map(|tensor| {
            let view = self.vector(&tensor)?;
            Some((tensor, view))
        })
    }

    fn matrix(&self, tensor: &TensorSpec) -> Option<&Weight> {
        match tensor.kind {
            TensorKind::Embedding => Some(&self.embedding),
            TensorKind::Head => self.untied_head.as_ref(),
            TensorKind::Projection(projection) => self.layers[tensor.layer?].find_projection(projection),
            TensorKind::Router => Some(&self.layers[tensor.layer?].experts.as_ref()?.router),
            TensorKind::Expert(expert, projection) => {
                self.layers[tensor.layer?].experts.as_ref()?.projection(projection).get(expert)
            }
            _ => None,
        }
    }

    fn vector(&self, tensor: &TensorSpec) -> Option<View> {
        let layer = tensor.layer.map(|layer| &self.layers[layer]);
        match tensor.kind {
            TensorKind::Norm(norm) => layer?.norm(norm),
            TensorKind::Convolution => layer?.convolution,
            TensorKind::Linear(part) => layer?.linear_part(part),
            TensorKind::LayerScalar => layer?.scalar,
            TensorKind::Sinks => layer?.sinks,
            TensorKind::ExpertBias => layer?.experts.as_ref()?.bias,
            TensorKind::RouterBias => layer?.experts.as_ref()?.router.bias,
            TensorKind::ExpertBiases(projection) => layer?.experts.as_ref()?.biases(projection),
            TensorKind::LayerEmbeddingNorm => self.layer_embedding_norm,
            TensorKind::FinalNorm => Some(self.final_norm),
            TensorKind::Bias(projection) => layer?.find_projection(projection)?.bias,
            _ => None,
        }
    }
}

/// The storage of the base's matrices on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseStorage {
    /// As the files hold them.
    AsStored,
    /// As the files hold them, with the blocks of a GGUF file as they are: for models read with [`Source::keep_blocks`].
    ///
    /// [`Source::keep_blocks`]: crate::model::source::Source::keep_blocks
    KeptBlocks,
    /// The layers' matrices in 4 bits; embedding and head as the files hold them.
    Quantized(Storage),
    /// Embedding and head in 4 bits too.
    QuantizedWhole(Storage),
    /// All in f32, to be trained themselves.
    Trained,
}

impl BaseStorage {
    /// A base whose layers' matrices are in `storage`; with `whole` embedding and head too.
    pub fn quantized(storage: Storage, whole: bool) -> Self {
        if whole { Self::QuantizedWhole(storage) } else { Self::Quantized(storage) }
    }

    /// The storage for a base of this configuration: files that hold 4 bits already keep them.
    ///
    /// # Errors
    /// Another 4-bit form than the files', or full training of them.
    pub fn of(self, config: &ModelConfig) -> Result<Self> {
        if let Some(parts) = config.frozen_parts().filter(|_| self == Self::Trained) {
            let problem = format!(
                "the model has {parts}, which cannot be trained themselves; take {} or {}",
                METHOD.is("lora"),
                METHOD.is("qlora")
            );
            return Err(Error::setting(METHOD, problem));
        }
        if self == Self::KeptBlocks {
            return Ok(Self::AsStored);
        }
        let Some(first) = config.quantized.values().next() else { return Ok(self) };
        // A file may hold matrices with and without quantized scales.
        let holds = |storage| config.quantized.values().any(|stored| storage == *stored);
        let stored = match self {
            Self::Quantized(storage) | Self::QuantizedWhole(storage) if holds(storage) => None,
            _ => Some(first),
        };
        match (self, stored) {
            // What such files hold as floats was left so on purpose.
            (Self::AsStored | Self::KeptBlocks, _) | (Self::Quantized(_), None) => Ok(Self::AsStored),
            (Self::QuantizedWhole(_), None) => Ok(self),
            (Self::Quantized(_) | Self::QuantizedWhole(_), Some(stored)) => Err(Error::setting(
                QUANT,
                format!(
                    "the model's files hold its weights in 4 bits, in another form than asked for; take {}, or the original model",
                    match stored.format4().filter(|_| !stored.is_kept()) {
                        Some(Format4 { code, double: true }) => QUANT.is(code),
                        Some(Format4 { code, .. }) => format!("{} {}", QUANT.is(code), DOUBLE_QUANT.is(false)),
                        None => QUANT.is("keep"),
                    }
                ),
            )),
            (Self::Trained, _) => Err(Error::setting(
                METHOD,
                format!(
                    "the model's files hold its weights in 4 bits, which cannot be trained themselves; take the original model, \
                     or {}",
                    METHOD.is("qlora")
                ),
            )),
        }
    }
}

/// Plans the weights of a layer's projections, in the order of [`Projection::ALL`].
fn plan_projections(
    plan: &mut MemoryPlan,
    config: &ModelConfig,
    i: usize,
    of_projection: impl Fn(Projection) -> Storage + Copy,
    max_binding_bytes: u64,
) -> [Option<Weight>; Projection::ALL.len()] {
    let [q, k, v] = if config.kv_source(i) == i {
        matrices(plan, config, i, Projection::OF_ATTENTION_INPUT, of_projection, max_binding_bytes)
    } else {
        let [q] = matrices(plan, config, i, [Projection::Q], of_projection, max_binding_bytes);
        [q, None, None]
    };
    let [o] = matrices(plan, config, i, [Projection::O], of_projection, max_binding_bytes);
    let [conv_in] = matrices(plan, config, i, [Projection::ConvIn], of_projection, max_binding_bytes);
    let [conv_out] = matrices(plan, config, i, [Projection::ConvOut], of_projection, max_binding_bytes);
    let [qkv, linear_gate] = matrices(plan, config, i, Projection::OF_LINEAR_VALUES, of_projection, max_binding_bytes);
    let [beta, decay] = matrices(plan, config, i, Projection::OF_LINEAR_HEADS, of_projection, max_binding_bytes);
    let [linear_out] = matrices(plan, config, i, [Projection::LinearOut], of_projection, max_binding_bytes);
    let inputs = Projection::OF_FEED_FORWARD_INPUT;
    let [gate, up] = matrices(plan, config, i, inputs, of_projection, max_binding_bytes);
    let [down] = matrices(plan, config, i, [Projection::Down], of_projection, max_binding_bytes);
    let of_embedding = [Projection::LayerEmbedding, Projection::LayerGate];
    let [embedding, layer_gate] = matrices(plan, config, i, of_embedding, of_projection, max_binding_bytes);
    let [layer_out] = matrices(plan, config, i, [Projection::LayerOut], of_projection, max_binding_bytes);
    [
        q,
        k,
        v,
        o,
        gate,
        up,
        down,
        conv_in,
        conv_out,
        qkv,
        linear_gate,
        beta,
        decay,
        linear_out,
        embedding,
        layer_gate,
        layer_out,
    ]
}

/// Plans the base's buffers. `stored` tells the type of a tensor in the files, `max_positions` the longest sequence.
pub fn plan(
    plan: &mut MemoryPlan,
    config: &ModelConfig,
    base: BaseStorage,
    stored: impl Fn(&str) -> Float,
    max_positions: usize,
    max_binding_bytes: u64,
) -> Network {
    let stored = |name: &str| if base == BaseStorage::Trained { Float::F32 } else { stored(name) };
    let in_files = |name: &str| match config.quantized.get(name) {
        Some(storage) => *storage,
        None => Storage::Float(stored(name)),
    };
    let of_vocabulary = |plan: &mut MemoryPlan, name: &str| {
        let packed = config.quantized.contains_key(name);
        let storage = match base {
            BaseStorage::QuantizedWhole(storage) if !packed => storage,
            _ => in_files(name),
        };
        let shape = [config.vocab_rows, config.hidden_size].map(|n| n as u32);
        // A matrix that bitsandbytes has quantized stays whole, with its scales; rows of GGUF blocks have scales of their own.
        let whole = config.quantized.get(name).is_some_and(|storage| !storage.is_kept());
        let limit = if whole { u64::MAX } else { max_binding_bytes };
        Weight::plan(plan, name, storage, shape, false, limit)
    };
    let vector =
        |plan: &mut MemoryPlan, name: &str, length: usize| plan.alloc(Category::Weights, name, 4 * length as u64);
    let embedding = of_vocabulary(plan, EMBEDDING);
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let storage = |name: &str| match base {
            BaseStorage::Quantized(storage) | BaseStorage::QuantizedWhole(storage) if config.quantized.is_empty() => {
                storage
            }
            _ => in_files(name),
        };
        let of_projection = |projection| storage(&projection_name(i, projection));
        let linear = config.linear_attention.as_ref().filter(|_| config.is_linear_attention(i));
        let linear = linear
            .map(|of| LinearPart::ALL.map(|part| vector(plan, part.name().0, of.part_shape(part).iter().product())));
        let convolution = config.convolutions.as_ref().filter(|_| config.is_convolution(i));
        let convolution = convolution.map(|of| vector(plan, CONVOLUTION, config.hidden_size * of.taps));
        let experts = config.experts_of(i).map(|experts| {
            let router = in_files(&format!("{}.weight", in_layer(i, ROUTER)));
            let of_experts = |projection| {
                let mut all = (0..experts.count).map(|expert| storage(&expert_name(i, expert, projection)));
                let first = all.next().unwrap_or(Storage::Float(Float::F32));
                // Experts lie in one binding, and so in one format.
                if all.all(|storage| storage == first) { first } else { Storage::Float(Float::F32) }
            };
            ExpertLayer::plan(plan, config, experts, router, of_experts, max_binding_bytes)
        });
        let projections = plan_projections(plan, config, i, of_projection, max_binding_bytes);
        let scalar = config.gemma4.is_some().then(|| vector(plan, LAYER_SCALAR, config.hidden_size));
        layers.push(Layer {
            norms: Norm::ALL.map(|norm| {
                let at_place = |(place, _): &&(Norm, &str)| *place == norm && config.layer_has_norm(i, norm);
                let (_, name) = config.norms.iter().find(at_place)?;
                Some(vector(plan, name, config.norm_length(i, norm)))
            }),
            projections,
            experts,
            sinks: config.attention_sinks.then(|| vector(plan, SINKS, config.num_heads)),
            convolution,
            linear,
            scalar,
        });
    }
    let final_norm = vector(plan, config.family.final_norm, config.hidden_size);
    let untied_head = (!config.tie_word_embeddings).then(|| of_vocabulary(plan, HEAD));
    let rope_tables = config.ropes.iter().map(|rope| {
        let mut table = |label| plan.alloc(Category::Workspace, label, 4 * (max_positions * rope.rotated) as u64);
        let keys = table("rope table");
        let grows = rope.query_scaling.is_some_and(|scaling| scaling.original < max_positions);
        RopeTables { keys, queries: if grows { table("rope table of queries") } else { keys } }
    });
    let rope_tables = rope_tables.collect();
    let layer_embedding_norm = config.layer_embeddings().map(|of| vector(plan, PROJECTION_NORM, of.width));
    let widest_head = (0..config.num_layers).map(|layer| config.layer_head_dim(layer)).max().unwrap_or(1);
    let ones = config.gemma4.is_some().then(|| vector(plan, "gains of the norm over values", widest_head));
    Network {
        config: config.clone(),
        embedding,
        layers,
        final_norm,
        untied_head,
        layer_embedding_norm,
        ones,
        rope_tables,
        max_positions,
    }
}

/// Plans matrices of a layer that read the same input, one behind the other where they are stored alike; none where the layer has others
/// in their place.
fn matrices<const N: usize>(
    plan: &mut MemoryPlan,
    config: &ModelConfig,
    layer: usize,
    projections: [Projection; N],
    storage: impl Fn(Projection) -> Storage,
    max_binding_bytes: u64,
) -> [Option<Weight>; N] {
    if !config.has_projection(layer, projections[0]) {
        return [const { None }; N];
    }
    let names = projections.map(|projection| projection_name(layer, projection));
    let storages = projections.map(storage);
    let inputs = config.layer_shape(layer, projections[0]).1 as u32;
    let rows: [Rows; N] = std::array::from_fn(|i| Rows {
        label: &names[i],
        out_features: config.layer_shape(layer, projections[i]).0 as u32,
        bias: config.projection_has_bias(projections[i]),
    });
    // A layer's 4-bit matrix is not cut into panels: their scales would differ from those that bitsandbytes computes.
    let limit = |storage| if matches!(storage, Storage::Quantized { .. }) { u64::MAX } else { max_binding_bytes };
    if storages.iter().all(|storage| *storage == storages[0]) {
        return Weight::plan_contiguous(plan, rows, storages[0], inputs, limit(storages[0])).map(Some);
    }
    std::array::from_fn(|i| {
        let Rows { label, out_features, bias } = rows[i];
        Some(Weight::plan(plan, label, storages[i], [out_features, inputs], bias, limit(storages[i])))
    })
}
