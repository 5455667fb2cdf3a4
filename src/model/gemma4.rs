//! What layers of Gemma 4 have beside those of a plain decoder: two sizes of heads, keys and values of an earlier layer, wider
//! feed-forward blocks, and embeddings for each layer. The keys are those of transformers' `Gemma4TextConfig`.

use super::json_fields::JsonFields;
use crate::Result;

/// The names of tensors that belong to no layer, and of the scalar of each layer.
pub const TABLE: &str = "model.embed_tokens_per_layer";
/// The linear layer from embeddings to the embeddings of all layers, one after the other in its rows.
pub const MODEL_PROJECTION: &str = "model.per_layer_model_projection";
/// The norm over the result of [`MODEL_PROJECTION`], of one layer.
pub const PROJECTION_NORM: &str = "model.per_layer_projection_norm";
/// The factor on a layer's result: its path below a layer.
pub const LAYER_SCALAR: &str = "layer_scalar";

/// The features of Gemma 4's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma4 {
    /// Features of a head in layers without a window.
    pub global_head_dim: usize,
    /// The layer whose keys and values each layer reads: itself, or an earlier one.
    pub kv_sources: Vec<usize>,
    /// True if the feed-forward blocks of layers without keys of their own are twice as wide.
    pub double_wide: bool,
    /// Embeddings for each layer, where there are any.
    pub embeddings: Option<LayerEmbeddings>,
}

/// Sizes of the embeddings for each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerEmbeddings {
    /// Features of a token in one layer.
    pub width: usize,
    /// Rows of the table.
    pub vocab_size: usize,
}

impl Gemma4 {
    /// Reads the features. `windows` has the window of each layer.
    ///
    /// # Errors
    /// A key of another type, or one whose feature is not supported.
    pub(super) fn of_fields(fields: &JsonFields, windows: &[Option<usize>], max: usize) -> Result<Self> {
        if fields.text("use_bidirectional_attention")? == Some("all") {
            let problem = "is `all`: this is an embedding model, which does not write text";
            return Err(fields.error("use_bidirectional_attention", problem));
        }
        for (flag, is) in [
            ("enable_moe_block", "a mixture of experts; take Gemma 4 E2B or E4B"),
            ("attention_k_eq_v", "a model whose values are its keys; take Gemma 4 E2B or E4B"),
        ] {
            if fields.flag(flag, false)? {
                return Err(fields.error(flag, format!("is true: this is {is}")));
            }
        }
        let shared = count_or_zero(fields, "num_kv_shared_layers", 0, max)?;
        let first = windows.len().saturating_sub(shared);
        let source = |layer: usize| {
            let alike = |other: &usize| windows[*other].is_some() == windows[layer].is_some();
            if layer < first { Some(layer) } else { (0..first).rev().find(alike) }
        };
        let kv_sources: Option<Vec<usize>> = (0..windows.len()).map(source).collect();
        let kv_sources = kv_sources.ok_or_else(|| {
            let problem = format!("is {shared}, which leaves a kind of layer without keys and values of its own");
            fields.error("num_kv_shared_layers", problem)
        })?;
        let global_head_dim = fields.count("global_head_dim", max)?.unwrap_or(512);
        if !global_head_dim.is_multiple_of(4) || global_head_dim > crate::ops::attention::MAX_HEAD_DIM as usize {
            let problem = format!("is {global_head_dim}, but must be a multiple of 4 up to 512");
            return Err(fields.error("global_head_dim", problem));
        }
        let width = count_or_zero(fields, "hidden_size_per_layer_input", 256, max)?;
        let vocab_size = fields.count("vocab_size_per_layer_input", max)?.unwrap_or(262_144);
        let embeddings = (width > 0).then_some(LayerEmbeddings { width, vocab_size });
        let double_wide = fields.flag("use_double_wide_mlp", false)?;
        Ok(Self { global_head_dim, kv_sources, double_wide, embeddings })
    }

    /// The layers whose keys and values others read, in ascending order.
    pub fn serving(&self) -> Vec<usize> {
        let others = self.kv_sources.iter().enumerate().filter(|(layer, source)| layer != *source);
        let mut serving: Vec<usize> = others.map(|(_, source)| *source).collect();
        serving.sort_unstable();
        serving.dedup();
        serving
    }
}

fn count_or_zero(fields: &JsonFields, key: &str, default: usize, max: usize) -> Result<usize> {
    match fields.value(key) {
        Some(value) if value.as_u64() == Some(0) => Ok(0),
        _ => Ok(fields.count(key, max)?.unwrap_or(default)),
    }
}
