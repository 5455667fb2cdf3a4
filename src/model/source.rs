//! A model directory, opened in one place: its configuration and its tensors, checked before anything is allocated.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::companions;
use super::config::ModelConfig;
use super::family::ExpertKeys;
use super::gemma4;
use super::gpt_oss;
use super::modules::{EXPERT_BIAS, Projection, ROUTER, in_layer};
use super::packed::{self, PackedWeight};
use super::tensor_source::TensorSource;
use super::tensors::{EMBEDDING, HEAD, TensorSpec, expert_name, is_layer_tensor, tensors};
use crate::quant;
use crate::quant::format::{Code4, Float, Storage};
use crate::setting::QUANT;
use crate::{Error, Result};

/// The place and the limits of the 4-bit copies of large models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Directory of the copies, made when the first one is written.
    pub dir: PathBuf,
    /// Models whose files have fewer bytes are not copied, since quantizing them takes no time.
    pub min_bytes: u64,
    /// Bytes that all copies together may take.
    pub max_bytes: u64,
}

/// A Hugging Face model directory, or a GGUF file, that was opened and checked.
#[derive(Clone, Debug)]
pub struct Source {
    /// The directory or the GGUF file, as the caller named it.
    pub dir: PathBuf,
    /// The contents of `config.json`.
    pub config: ModelConfig,
    /// The tensors of its weight files. Their values stay on disk until they are read.
    pub tensors: TensorSource,
    /// The place for a copy of what the device quantizes; `None` keeps no copy.
    pub cache: Option<CacheSettings>,
}

impl Source {
    /// Opens `config.json` and the weights of `dir`, and holds the shapes of the weights against the configuration.
    ///
    /// # Errors
    /// A file that is missing or damaged, or weights that are not those of `config.json`.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut config = ModelConfig::from_dir(dir)?;
        let mut tensors = TensorSource::open(dir)?;
        read_off(&mut tensors, &mut config)?;
        check_shapes(&tensors, &config)?;
        Ok(Self { dir: dir.to_owned(), config, tensors, cache: None })
    }

    /// Opens `config.json` alone, for a model whose weights are drawn anew: the source has no tensors.
    ///
    /// # Errors
    /// A `config.json` that is missing or damaged.
    pub fn without_weights(dir: &Path) -> Result<Self> {
        let config = ModelConfig::from_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), config, tensors: TensorSource::empty(dir), cache: None })
    }

    /// The type in which the files hold a tensor. A tensor that they do not hold as floats counts as f32, the type in which new
    /// weights are made.
    pub fn stored(&self, name: &str) -> Float {
        self.tensors.float(name).unwrap_or(Float::F32)
    }

    /// The values of a tensor of this shape in f32, decoded where the files hold it in 4 bits.
    ///
    /// # Errors
    /// A tensor that is missing, or cannot be read.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let stored = self.config.quantized.get(name).filter(|stored| !stored.is_kept());
        match (stored.and_then(|stored| stored.format4()), shape) {
            (Some(format), [rows, cols]) => {
                let stored = Storage::Quantized(format);
                let packed = PackedWeight::find(&self.tensors, name, [*rows, *cols], stored)?.read()?;
                Ok(quant::dequantize(&packed, format.code, rows * cols))
            }
            _ => self.tensors.require(name, shape)?.read_f32(),
        }
    }

    /// Keeps the matrices of a GGUF file, or experts in MXFP4, as the blocks that they are.
    ///
    /// # Errors
    /// A model without such blocks.
    pub fn keep_blocks(&mut self) -> Result<()> {
        let matrices = tensors(&self.config).into_iter().filter(TensorSpec::is_matrix);
        let kept = |spec: TensorSpec| Some((packed::storage_of_blocks(&self.tensors, &spec.name)?, spec.name));
        let kept: BTreeMap<_, _> = matrices.filter_map(kept).map(|(storage, name)| (name, storage)).collect();
        if kept.is_empty() {
            let held = match (self.config.quantized.is_empty(), self.tensors.get(EMBEDDING)) {
                (true, Some(info)) => format!("its embedding is {}", info.dtype),
                _ => "it is no GGUF file".to_owned(),
            };
            let problem = format!(
                "holds no weights in blocks to keep, as GGUF files in Q4_K_M or Q8_0, and gpt-oss in MXFP4, do: {held}"
            );
            return Err(Error::file(&self.dir, format!("{problem}; take {}", QUANT.is(Code4::Nf4))));
        }
        self.config.quantized = kept;
        check_experts(&self.tensors, &self.config)
    }

    /// True if the directory has a tokenizer.
    pub fn has_tokenizer(&self) -> bool {
        ["tokenizer.json", "tokenizer.model"].iter().any(|name| companions::is_file(&self.dir.join(name)))
    }
}

/// Reads off the files what they, not `config.json`, decide: a head of its own beside `tie_word_embeddings`, and which matrices are in 4
/// bits.
///
/// # Errors
/// A file that cannot be read.
pub fn read_off(source: &mut TensorSource, config: &mut ModelConfig) -> Result<()> {
    if config.tie_word_embeddings && source.has(HEAD) {
        if !source.has(EMBEDDING) {
            source.rename(HEAD, EMBEDDING);
        } else if !equal(source)? {
            config.tie_word_embeddings = false;
        }
    }
    follow_paths(source, config)?;
    let matrices = tensors(config).into_iter().filter(TensorSpec::is_matrix);
    let format = |spec: TensorSpec| {
        let declared = config.quantized.get(&spec.name).and_then(|storage| storage.format4());
        Some((packed::format_of(source, &spec.name, &spec.shape, declared)?, spec.name))
    };
    let found = matrices.filter_map(format).map(|(format, name)| (name, Storage::Quantized(format)));
    config.quantized = found.collect();
    Ok(())
}

/// Lists linear layers that have other paths in the files, or are fused there, under the names of a plain decoder.
fn follow_paths(source: &mut TensorSource, config: &ModelConfig) -> Result<()> {
    if let Some(of) = config.layer_embeddings() {
        let module = |layer| in_layer(layer, Projection::LayerEmbedding.module());
        let parts: Vec<_> = (0..config.num_layers).map(|layer| (module(layer), of.width)).collect();
        let stored = packed::format_of(source, &format!("{}.weight", gemma4::MODEL_PROJECTION), &[], None);
        source.split_module(gemma4::MODEL_PROJECTION, &parts, stored)?;
    }
    pass_over_unread_keys(source, config);
    for layer in 0..config.num_layers {
        follow_expert_paths(source, config, layer)?;
        for (projection, path) in config.family.paths {
            source.rename_module(&in_layer(layer, path), &in_layer(layer, projection.module()));
        }
        for fused in config.family.fused {
            let part = |part: &Projection| (in_layer(layer, part.module()), config.layer_shape(layer, *part).0);
            let parts: Vec<_> = fused.parts.iter().map(part).collect();
            let module = in_layer(layer, fused.path);
            let stored = packed::format_of(source, &format!("{module}.weight"), &[], None);
            source.split_module(&module, &parts, stored)?;
        }
    }
    Ok(())
}

/// Lists the router and the experts of a layer under the names of Qwen3-MoE.
fn follow_expert_paths(source: &mut TensorSource, config: &ModelConfig, layer: usize) -> Result<()> {
    let (Some(rule), Some(experts)) = (config.family.experts, config.experts_of(layer)) else { return Ok(()) };
    if rule.router != ROUTER {
        source.rename_module(&in_layer(layer, rule.router), &in_layer(layer, ROUTER));
    }
    if let Some(bias) = rule.bias {
        source.list_as(&in_layer(layer, bias), &in_layer(layer, EXPERT_BIAS));
    }
    if rule.keys == ExpertKeys::GptOss {
        return gpt_oss::list_experts(source, config, layer);
    }
    for (projection, name) in Projection::OF_EXPERTS.into_iter().zip(rule.projections) {
        for expert in 0..experts.count {
            let (path, module) = (format!("{}.{expert}.{name}", rule.experts), projection.module_of_expert(expert));
            if path != module {
                source.rename_module(&in_layer(layer, &path), &in_layer(layer, &module));
            }
        }
    }
    Ok(())
}

/// Drops tensors that published files hold, but transformers does not read: keys and values of layers that read those of others.
fn pass_over_unread_keys(source: &mut TensorSource, config: &ModelConfig) {
    for layer in (0..config.num_layers).filter(|layer| config.kv_source(*layer) != *layer) {
        let unread = ["self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm"];
        unread.iter().for_each(|module| source.remove_module(&in_layer(layer, module)));
    }
}

/// True if head and embedding hold the same values: many files of tied models have both.
fn equal(source: &TensorSource) -> Result<bool> {
    match (source.get(EMBEDDING), source.get(HEAD)) {
        (Some(embedding), Some(head)) if embedding.shape == head.shape => head.all_pairs(embedding, |a, b| a == b),
        _ => Ok(false),
    }
}

/// The type in which the directory holds its embedding; None where its weights cannot be read.
pub fn stored_embedding(dir: &Path) -> Option<Float> {
    TensorSource::open(dir).ok()?.float(EMBEDDING)
}

/// Holds the tensors of a directory against the shapes that its configuration implies.
///
/// # Errors
/// A missing tensor, one whose shape disagrees with `config.json`, or one of a layer for which it has no place.
pub fn check_shapes(source: &TensorSource, config: &ModelConfig) -> Result<()> {
    let expected = tensors(config);
    for spec in &expected {
        match (config.quantized.get(&spec.name), &spec.shape[..]) {
            (Some(stored), [rows, cols]) => {
                PackedWeight::find(source, &spec.name, [*rows, *cols], *stored)?;
            }
            _ => {
                source.require(&spec.name, &spec.shape)?;
            }
        }
    }
    check_experts(source, config)?;
    // A model with fewer layers, or without its biases, would run and be another model. Other tensors that a file may carry
    // (the frequencies of rope, a tied head) do no harm.
    let expected: HashSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
    match source.names().find(|name| is_layer_tensor(name) && !expected.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Error::field(
            source.path(),
            name,
            "is unexpected: the model that config.json describes has no such tensor",
        )),
    }
}

/// Refuses experts of a layer of which only some are in 4 bits, or in several forms of it: a kernel reads all of them alike.
fn check_experts(source: &TensorSource, config: &ModelConfig) -> Result<()> {
    let Some(experts) = config.experts.as_ref().filter(|_| !config.quantized.is_empty()) else { return Ok(()) };
    for layer in (0..config.num_layers).filter(|layer| experts.layers[*layer]) {
        for projection in Projection::OF_EXPERTS {
            let name = |expert| expert_name(layer, expert, projection);
            let first = config.quantized.get(&name(0));
            if let Some(other) = (1..experts.count).map(name).find(|name| config.quantized.get(name) != first) {
                let problem = "is stored in another format than expert 0 of its layer; take the original model";
                return Err(Error::field(source.path(), &other, problem));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_model_has_every_expected_tensor() {
        let dir = Path::new("../shared/models/stories260K");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        }
        let source = Source::open(dir).unwrap();
        assert_eq!(tensors(&source.config).len(), 47);
        let norm = source.tensors.require("model.norm.weight", &[64]).unwrap();
        let whole = norm.read_f32().unwrap();
        let mut piece = [0; 8];
        norm.read(8, &mut piece).unwrap();
        assert_eq!(piece[..4], whole[2].to_le_bytes());
    }

    #[test]
    fn a_source_without_weights_has_no_tensors() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen2");
        let source = Source::without_weights(&dir).unwrap();
        assert_eq!((source.tensors.names().count(), source.stored(EMBEDDING)), (0, Float::F32));
        let message = source.tensors.require(EMBEDDING, &[1]).unwrap_err().to_string();
        assert!(message.contains("is missing"), "{message}");
        assert_eq!(stored_embedding(&dir), Some(Float::F32));
    }
}
