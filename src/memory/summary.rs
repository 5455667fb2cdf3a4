//! A summary of a model directory: its sizes, and the memory that it needs.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::Result;
use crate::gpu::{Category, MemoryPlan};
use crate::model::source::Source;
use crate::model::tensors::{parameters, tensors};
use crate::network::base::{self, BaseStorage};
use crate::quant::format::{Code4, Storage};

/// The sizes of a model and the memory of its weights, as [`describe`] finds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ModelSummary {
    /// The model's directory, as the caller named it.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub path: PathBuf,
    /// `model_type` of `config.json`, such as `llama`.
    pub family: String,
    /// Number of decoder layers.
    pub layers: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the two halves of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Number of tokens that the embedding has a row for.
    pub vocabulary: usize,
    /// True if the output head is the embedding.
    pub tied_head: bool,
    /// Longest sequence in tokens that the model is made for.
    pub context: usize,
    /// Number of weights of the whole model; a tied head counts once.
    pub parameters: u64,
    /// Types of the stored tensors.
    pub dtypes: Vec<String>,
    /// Bytes of the base on the device in the types of its files.
    pub stored_bytes: u64,
    /// Bytes of the base on the device with its linear layers in NF4 and double quantization.
    pub nf4_bytes: u64,
}

/// Describes a model directory without reading a weight.
///
/// # Errors
/// Files are missing or damaged, or they disagree with each other.
pub fn describe(dir: &Path) -> Result<ModelSummary> {
    let source = Source::open(dir)?;
    let config = &source.config;
    let base_bytes = |base: BaseStorage| {
        let base = base.of(config).unwrap_or(base);
        let mut plan = MemoryPlan::new();
        base::plan(&mut plan, config, base, |name| source.stored(name), 1, u64::MAX);
        let ledger = plan.ledger();
        ledger.get(Category::Weights) + ledger.get(Category::QuantScales)
    };
    let tensors = tensors(config);
    let mut dtypes: Vec<String> =
        tensors.iter().filter_map(|spec| Some(source.tensors.float(&spec.name)?.to_string())).collect();
    let name = |stored: &Storage| stored.format4().map_or(stored.name(), |format| format.code.name()).to_owned();
    dtypes.extend(config.quantized.values().map(name));
    dtypes.sort();
    dtypes.dedup();
    Ok(ModelSummary {
        path: dir.to_owned(),
        family: config.family.model_type.to_owned(),
        layers: config.num_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        heads: config.num_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        vocabulary: config.vocab_size,
        tied_head: config.tie_word_embeddings,
        context: config.max_position_embeddings,
        parameters: parameters(config),
        dtypes,
        stored_bytes: base_bytes(BaseStorage::AsStored),
        nf4_bytes: base_bytes(BaseStorage::Quantized(Code4::default().storage(true))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_is_described_by_its_own_sizes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen2");
        let summary = describe(&dir).unwrap();
        assert_eq!((summary.family.as_str(), summary.layers), ("qwen2", 2));
        assert!(summary.nf4_bytes < summary.stored_bytes && summary.stored_bytes >= 2 * summary.parameters);
        assert_eq!(summary.dtypes, ["f32"]);
    }
}
