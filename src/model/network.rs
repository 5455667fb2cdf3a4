//! The frozen base on the device: which matrices a decoder has, in which storage, planned without reading a weight.

use super::config::{ModelConfig, Projection};
use crate::gpu::{Category, MemoryPlan, View};
use crate::ops::weight::{Float, Rows, Storage, Weight};
use crate::{Error, Result};

/// One decoder layer's frozen tensors. Gains and biases are f32.
#[derive(Clone, Debug)]
pub struct Layer {
    pub input_norm: View,
    pub post_attention_norm: View,
    /// Gains of the per-head norms of queries and keys (Qwen3), `[head_dim]` each.
    pub qk_norm: Option<[View; 2]>,
    /// In the order of [`Projection::ALL`].
    pub projections: Vec<Weight>,
}

impl Layer {
    pub fn projection(&self, projection: Projection) -> &Weight {
        &self.projections[projection as usize]
    }
}

/// The frozen base.
#[derive(Clone, Debug)]
pub struct Network {
    pub config: ModelConfig,
    pub embedding: Weight,
    pub layers: Vec<Layer>,
    pub final_norm: View,
    /// None when the head is the embedding.
    pub untied_head: Option<Weight>,
    /// (cos, sin) as `[position][head_dim / 2]`.
    pub rope_table: View,
    pub max_positions: usize,
}

impl Network {
    /// The matrix from hidden states to logits, `[vocabulary, hidden]`.
    pub fn head(&self) -> &Weight {
        self.untied_head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix with its tensor's name, embedding and head included.
    pub fn weights(&self) -> impl Iterator<Item = (String, &Weight)> {
        let layers =
            self.layers.iter().enumerate().flat_map(|(i, layer)| {
                Projection::ALL.iter().map(move |p| (projection_name(i, *p), layer.projection(*p)))
            });
        std::iter::once((EMBEDDING.to_owned(), &self.embedding))
            .chain(layers)
            .chain(self.untied_head.iter().map(|w| (HEAD.to_owned(), w)))
    }

    /// Every f32 vector with its tensor's name and length.
    pub fn vectors(&self) -> Vec<(String, View, usize)> {
        let config = &self.config;
        let mut all = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            all.push((format!("{prefix}.input_layernorm.weight"), layer.input_norm, config.hidden_size));
            let name = format!("{prefix}.post_attention_layernorm.weight");
            all.push((name, layer.post_attention_norm, config.hidden_size));
            if let Some([q, k]) = layer.qk_norm {
                all.push((format!("{prefix}.self_attn.q_norm.weight"), q, config.head_dim));
                all.push((format!("{prefix}.self_attn.k_norm.weight"), k, config.head_dim));
            }
            for projection in Projection::ALL {
                if let Some(bias) = layer.projection(projection).bias {
                    let length = config.projection_shape(projection).0;
                    all.push((format!("{prefix}.{}.bias", projection.module()), bias, length));
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), self.final_norm, config.hidden_size));
        all
    }
}

/// Name and shape of every tensor in the order of [`Network::weights`] and then [`Network::vectors`].
pub fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    // Planned and thrown away: the plan knows the order, and costs nothing.
    let network = plan(&mut MemoryPlan::new(), config, BaseStorage::Trained, |_| Float::F32, 1, u64::MAX);
    let matrices = network
        .weights()
        .map(|(name, weight)| (name, vec![weight.out_features as usize, weight.in_features as usize]))
        .collect::<Vec<_>>();
    let vectors = network.vectors().into_iter().map(|(name, _, length)| (name, vec![length]));
    matrices.into_iter().chain(vectors).collect()
}

pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";

/// Whether a matrix is a layer's, and so in 4 bits where the files hold 4 bits.
pub fn is_projection(name: &str) -> bool {
    name != EMBEDDING && name != HEAD
}

pub fn projection_name(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}.weight", projection.module())
}

/// How the matrices are to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseStorage {
    /// As the files hold them.
    AsStored,
    /// The layers' matrices in 4 bits; embedding and head as the files hold them.
    Quantized(Storage),
    /// Embedding and head in 4 bits too.
    QuantizedWhole(Storage),
    /// All in f32, to be trained themselves.
    Trained,
}

impl BaseStorage {
    /// The storage for a base of this configuration: files that hold 4 bits already keep them.
    ///
    /// # Errors
    /// Another 4-bit form than the files', or full training of them.
    pub fn of(self, config: &ModelConfig) -> Result<Self> {
        let Some(stored) = config.quantization else { return Ok(self) };
        match self {
            Self::AsStored => Ok(Self::Quantized(stored.storage())),
            Self::Quantized(storage) | Self::QuantizedWhole(storage) if storage == stored.storage() => Ok(self),
            Self::Quantized(_) | Self::QuantizedWhole(_) => Err(Error::Setting(format!(
                "the model's files hold its weights in 4 bits, in another form than asked for; take {}, or the original model",
                stored.flags()
            ))),
            Self::Trained => Err(Error::Setting(
                "the model's files hold its weights in 4 bits, which cannot be trained themselves; take the original model, or \
                 --method qlora"
                    .to_owned(),
            )),
        }
    }
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
    let of_vocabulary = |plan: &mut MemoryPlan, name: &str| {
        let storage = match base {
            BaseStorage::QuantizedWhole(storage) => storage,
            _ => Storage::Float(stored(name)),
        };
        let shape = [config.vocab_size, config.hidden_size].map(|n| n as u32);
        Weight::plan(plan, name, storage, shape, false, max_binding_bytes)
    };
    let vector =
        |plan: &mut MemoryPlan, name: &str, length: usize| plan.alloc(Category::Weights, name, 4 * length as u64);
    let embedding = of_vocabulary(plan, EMBEDDING);
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let storage = |projection| match base {
            BaseStorage::AsStored | BaseStorage::Trained => Storage::Float(stored(&projection_name(i, projection))),
            BaseStorage::Quantized(storage) | BaseStorage::QuantizedWhole(storage) => storage,
        };
        let [q, k, v] = matrices(plan, config, i, Projection::OF_ATTENTION_INPUT, storage, max_binding_bytes);
        let [o] = matrices(plan, config, i, [Projection::O], storage, max_binding_bytes);
        let [gate, up] = matrices(plan, config, i, Projection::OF_FEED_FORWARD_INPUT, storage, max_binding_bytes);
        let [down] = matrices(plan, config, i, [Projection::Down], storage, max_binding_bytes);
        let projections = vec![q, k, v, o, gate, up, down];
        layers.push(Layer {
            input_norm: vector(plan, "input_layernorm", config.hidden_size),
            post_attention_norm: vector(plan, "post_attention_layernorm", config.hidden_size),
            qk_norm: config.qk_norm.then(|| ["q_norm", "k_norm"].map(|name| vector(plan, name, config.head_dim))),
            projections,
        });
    }
    let final_norm = vector(plan, "model.norm", config.hidden_size);
    let untied_head = (!config.tie_word_embeddings).then(|| of_vocabulary(plan, HEAD));
    let table_bytes = 4 * (max_positions * config.head_dim) as u64;
    let rope_table = plan.alloc(Category::Workspace, "rope table", table_bytes);
    Network { config: config.clone(), embedding, layers, final_norm, untied_head, rope_table, max_positions }
}

/// Plans matrices of a layer that read the same input, one behind the other where they are stored alike.
fn matrices<const N: usize>(
    plan: &mut MemoryPlan,
    config: &ModelConfig,
    layer: usize,
    projections: [Projection; N],
    storage: impl Fn(Projection) -> Storage,
    max_binding_bytes: u64,
) -> [Weight; N] {
    let names = projections.map(|projection| projection_name(layer, projection));
    let storages = projections.map(storage);
    let inputs = config.projection_shape(projections[0]).1 as u32;
    let rows: [Rows; N] = std::array::from_fn(|i| Rows {
        label: &names[i],
        out_features: config.projection_shape(projections[i]).0 as u32,
        bias: config.projection_has_bias(projections[i]),
    });
    // A layer's 4-bit matrix stays whole, with the scales that bitsandbytes gives it.
    let limit = |storage| if matches!(storage, Storage::Quantized { .. }) { u64::MAX } else { max_binding_bytes };
    if storages.iter().all(|storage| *storage == storages[0]) {
        return Weight::plan_in_a_row(plan, rows, storages[0], inputs, limit(storages[0]));
    }
    std::array::from_fn(|i| {
        let Rows { label, out_features, bias } = rows[i];
        Weight::plan(plan, label, storages[i], [out_features, inputs], bias, limit(storages[i]))
    })
}
