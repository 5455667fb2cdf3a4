//! A base and an adapter merged into one GGUF file, for llama.cpp and the programs around it.
//!
//! Over a model directory every tensor is written anew. Over a GGUF file only the adapted matrices are: every other key and tensor is
//! copied byte for byte.

use std::path::{Path, PathBuf};

use super::gguf_adapter::written_as;
use super::gguf_keys::{ModelKeys, model_keys};
use super::gguf_tokens::tokenizer_keys;
use super::gguf_writer::{GgufWriter, Meta, PlannedTensor, check_place};
use super::merge::Merger;
use crate::data::settings::home_of_adapter;
use crate::data::template::{ChatTemplate, OWN_FILE};
use crate::data::tokenizer::{Tokenizer, tokenizer_text};
use crate::gpu::Gpu;
use crate::infer::text_format::{TemplateChoice, TextFormat};
use crate::model::gguf_blocks::GgmlType;
use crate::model::gguf_config::Architecture;
use crate::model::gguf_file::{GgufFile, GgufTensor, is_gguf};
use crate::model::gguf_tensors::{CONVOLUTION, NORM_OF_LFM2, NORMS, PROJECTIONS};
use crate::model::json_fields::parse_object;
use crate::model::listing::row_in_file;
use crate::model::modules::Projection;
use crate::model::tensors::{TensorKind, TensorSpec};
use crate::setting::DTYPE;
use crate::{Error, Result, files};

/// The type of the written matrices. Vectors are always in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[cfg_attr(feature = "cli", value(rename_all = "snake_case"))]
pub enum GgufFloat {
    /// 32 bits.
    F32,
    /// 16 bits, as llama.cpp's converter writes them.
    #[default]
    F16,
    /// 16 bits with the range of f32.
    Bf16,
    /// 8 bits in blocks of 32 values.
    #[cfg_attr(feature = "cli", value(name = "q8_0"))]
    Q8_0,
    /// 4 bits in blocks of 32 values.
    #[cfg_attr(feature = "cli", value(name = "q4_0"))]
    Q4_0,
}

impl GgufFloat {
    /// Its type in the file, and the number of `general.file_type`.
    fn kind(self) -> (GgmlType, u32) {
        match self {
            Self::F32 => (GgmlType::F32, 0),
            Self::F16 => (GgmlType::F16, 1),
            Self::Bf16 => (GgmlType::Bf16, 32),
            Self::Q8_0 => (GgmlType::Q8_0, 7),
            Self::Q4_0 => (GgmlType::Q4_0, 2),
        }
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.kind().0.name()
    }
}

/// Settings of a merge into a GGUF file.
#[derive(Clone, Debug)]
pub struct GgufMergeSettings {
    /// The base: a directory or a GGUF file.
    pub model: PathBuf,
    /// Directory of the PEFT adapter.
    pub adapter: PathBuf,
    /// The file to write.
    pub out: PathBuf,
    /// Type of the written matrices.
    pub float: GgufFloat,
    /// True to replace a file that is there.
    pub overwrite: bool,
}

/// Result of a merge into a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufMerge {
    /// Number of matrices that the adapter changed.
    pub matrices: usize,
    /// Tensors that were copied byte for byte.
    pub copied: usize,
    /// Ollama's file with the tokens that end an answer; None where the model has no tokenizer, and in a browser.
    pub modelfile: Option<PathBuf>,
}

/// A tensor of the file, and those of transformers whose rows it has.
struct Written {
    name: String,
    shape: Vec<usize>,
    kind: GgmlType,
    parts: Vec<TensorSpec>,
}

/// A tensor in the order of the file.
enum Item<'a> {
    /// Copied from the base.
    Copied(&'a GgufTensor),
    /// Computed.
    Made(Written),
}

impl Item<'_> {
    fn planned(&self) -> PlannedTensor {
        match self {
            Self::Copied(t) => PlannedTensor { name: t.name.clone(), shape: t.shape.clone(), kind: t.kind },
            Self::Made(w) => PlannedTensor { name: w.name.clone(), shape: w.shape.clone(), kind: w.kind },
        }
    }
}

/// All tensors of a model from a directory; of a GGUF base its own, those of adapted matrices in place of the base's.
fn order<'a>(merger: &Merger, base: Option<&'a GgufFile>, mut written: Vec<Written>) -> Vec<Item<'a>> {
    let Some(base) = base else { return written.into_iter().map(Item::Made).collect() };
    written.retain(|written| written.parts.iter().any(|part| merger.changes(part)));
    let mut order = Vec::new();
    for tensor in &base.tensors {
        order.push(match written.iter().position(|written| written.name == tensor.name) {
            Some(at) => Item::Made(written.swap_remove(at)),
            None => Item::Copied(tensor),
        });
    }
    // A head that is no longer the embedding.
    order.extend(written.into_iter().map(Item::Made));
    order
}

/// Writes the merged model. `progress` receives the number of tensors done and the total.
///
/// # Errors
/// The model or the adapter cannot be read or they do not fit together, llama.cpp knows no such model, the file is there, the disk is
/// full, or the device fails.
pub async fn merge(
    settings: &GgufMergeSettings,
    gpu: &Gpu,
    mut progress: impl FnMut(usize, usize),
) -> Result<GgufMerge> {
    check_place(&settings.out, settings.overwrite)?;
    let merger = Merger::open(&settings.model, &settings.adapter)?;
    if let Some(tokens) = merger.grown_vocabulary() {
        let problem = format!(
            "brings a vocabulary of {tokens} tokens, more than the model has, which a GGUF file does not get here; merge into a \
             model directory instead"
        );
        return Err(Error::file(&settings.adapter, problem));
    }
    let architecture = written_as(&settings.model, &merger.source.config)?;
    let base = is_gguf(&settings.model).then(|| GgufFile::open(&settings.model)).transpose()?;
    let written = written(&merger, settings.float, base.as_ref());
    let (records, vectors) = match &base {
        Some(base) => (copied_keys(settings, &merger, base)?, Vec::new()),
        // Its tensors are written as a whole, which is more than a browser's memory holds.
        None if cfg!(target_arch = "wasm32") => {
            return Err(Error::file(&settings.model, "is no GGUF file; in a browser only those are merged"));
        }
        None => own_keys(settings, &merger, architecture)?,
    };
    let order = order(&merger, base.as_ref(), written);
    let mut planned: Vec<PlannedTensor> = order.iter().map(Item::planned).collect();
    let vector = |(name, values): &(String, Vec<f32>)| PlannedTensor {
        name: name.clone(),
        shape: vec![values.len()],
        kind: GgmlType::F32,
    };
    planned.extend(vectors.iter().map(vector));
    let mut writer = GgufWriter::create(&settings.out, &records, planned, settings.overwrite)?;
    let mut copied = 0;
    for (done, tensor) in order.iter().enumerate() {
        match tensor {
            Item::Copied(tensor) => {
                writer.copy(&tensor.name, tensor.bytes, |start, piece| tensor.read(start, piece))?;
                copied += 1;
            }
            Item::Made(written) => writer.write(&written.name, &bytes(&merger, gpu, architecture, written).await?)?,
        }
        progress(done + 1, order.len());
    }
    for (name, values) in &vectors {
        writer.write(name, bytemuck::cast_slice(values))?;
    }
    writer.finish()?;
    // Pages have no Ollama to give it to.
    let modelfile = if cfg!(target_arch = "wasm32") { None } else { write_modelfile(settings, &merger)? };
    Ok(GgufMerge { matrices: merger.matrices(), copied, modelfile })
}

/// The tensors of a model as llama.cpp has them, with the types that they are written in.
fn written(merger: &Merger, float: GgufFloat, base: Option<&GgufFile>) -> Vec<Written> {
    let mut all: Vec<Written> = Vec::new();
    for spec in merger.expected() {
        let name = name_in_file(&spec, merger, base);
        // The parts of one tensor follow one another.
        match all.last_mut().filter(|last| last.name == name) {
            Some(last) => {
                last.shape[0] += spec.shape[0];
                last.parts.push(spec);
            }
            None => {
                let kind = match &spec.shape[..] {
                    [_, columns] if (*columns as u64).is_multiple_of(float.kind().0.block()) => float.kind().0,
                    [_, _] => GgmlType::F16,
                    _ => GgmlType::F32,
                };
                let shape = match (spec.kind, &spec.shape[..]) {
                    (TensorKind::Convolution, [channels, _, taps]) => vec![*channels, *taps],
                    (_, shape) => shape.to_vec(),
                };
                all.push(Written { name, shape, kind, parts: vec![spec] });
            }
        }
    }
    all
}

fn name_in_file(spec: &TensorSpec, merger: &Merger, base: Option<&GgufFile>) -> String {
    let config = &merger.source.config;
    let layer = spec.layer.unwrap_or(0);
    let fused_in_base = || base.is_some_and(|base| base.tensor(&format!("blk.{layer}.attn_qkv.weight")).is_some());
    let of_projection = |projection: Projection| match projection {
        Projection::Q | Projection::K | Projection::V if config.fused(projection).is_some() || fused_in_base() => {
            "attn_qkv"
        }
        Projection::Gate if config.fused(projection).is_some() => "ffn_up",
        other => PROJECTIONS.iter().find(|(_, own)| *own == other).map_or("", |(name, _)| name),
    };
    let below = |name: &str, suffix: &str| format!("blk.{layer}.{name}.{suffix}");
    match spec.kind {
        TensorKind::Embedding => "token_embd.weight".to_owned(),
        TensorKind::Head => "output.weight".to_owned(),
        TensorKind::FinalNorm if config.family.convolutions => match base {
            Some(base) if base.tensor("output_norm.weight").is_some() => "output_norm.weight".to_owned(),
            _ => format!("{NORM_OF_LFM2}.weight"),
        },
        TensorKind::FinalNorm => "output_norm.weight".to_owned(),
        TensorKind::Convolution => below(CONVOLUTION, "weight"),
        TensorKind::Projection(projection) => below(of_projection(projection), "weight"),
        TensorKind::Bias(projection) => below(of_projection(projection), "bias"),
        // No architecture with experts, sinks or embeddings for each layer is written.
        TensorKind::Router
        | TensorKind::RouterBias
        | TensorKind::Expert(..)
        | TensorKind::ExpertBias
        | TensorKind::ExpertBiases(_)
        | TensorKind::Sinks
        | TensorKind::LayerEmbeddings
        | TensorKind::LayerEmbeddingNorm
        | TensorKind::LayerScalar
        | TensorKind::Linear(_) => spec.name.clone(),
        TensorKind::Norm(norm) => {
            let name = NORMS.iter().find(|(_, own)| *own == norm).map_or("", |(name, _)| name);
            below(name, "weight")
        }
    }
}

/// The merged values of a tensor in the order of rows and the type of the file.
async fn bytes(merger: &Merger, gpu: &Gpu, architecture: Architecture, written: &Written) -> Result<Vec<u8>> {
    let config = &merger.source.config;
    let mut bytes = Vec::new();
    for part in &written.parts {
        let mut values = merger.values(gpu, part).await?;
        let turned = |projection| architecture.permuted && matches!(projection, Projection::Q | Projection::K);
        match part.kind {
            TensorKind::Projection(projection) | TensorKind::Bias(projection) if turned(projection) => {
                values = in_file_order(&values, part.shape[0], config.head_dim);
            }
            TensorKind::Norm(_) | TensorKind::FinalNorm if config.gain_offset != 0.0 => {
                values.iter_mut().for_each(|value| *value += config.gain_offset);
            }
            _ => {}
        }
        if written.kind == GgmlType::F16 && values.iter().any(|v| !half::f16::from_f32(*v).is_finite()) {
            let problem = format!("does not fit into f16; save with {}", DTYPE.is("bf16"));
            return Err(Error::field(&merger.source.dir, &part.name, problem));
        }
        bytes.extend(written.kind.encode(&values).unwrap_or_default());
    }
    Ok(bytes)
}

fn in_file_order(values: &[f32], rows: usize, head: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let mut turned = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(columns).enumerate() {
        turned[row_in_file(row, Some(head)) * columns..][..columns].copy_from_slice(values);
    }
    turned
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|name| name.to_str()).unwrap_or("model").to_owned()
}

/// The chat template and the end tokens that the adapter was trained with; None where it has none of its own.
fn template_of_adapter(settings: &GgufMergeSettings, merger: &Merger) -> Result<Option<ChatTemplate>> {
    let home = home_of_adapter(&settings.adapter);
    if !merger.source.has_tokenizer() || !files::is_file(&home.join(OWN_FILE)) {
        return Ok(None);
    }
    let tokenizer = Tokenizer::from_dir(&settings.model, &merger.source.config)?;
    ChatTemplate::load(&home, None, tokenizer.special_tokens()?)
}

fn template_keys(template: &ChatTemplate) -> Vec<(String, Meta)> {
    let (main, for_tools) = template.texts();
    let mut keys = vec![("tokenizer.chat_template".to_owned(), Meta::text(main))];
    if let Some(text) = for_tools {
        keys.push(("tokenizer.chat_template.tool_use".to_owned(), Meta::text(text)));
        keys.push(("tokenizer.chat_templates".to_owned(), Meta::Texts(vec!["tool_use".to_owned()])));
    }
    keys
}

/// The keys of a GGUF base, byte for byte but for those that name the model and its template.
fn copied_keys(settings: &GgufMergeSettings, merger: &Merger, base: &GgufFile) -> Result<Vec<Vec<u8>>> {
    let mut own = vec![
        ("general.name".to_owned(), Meta::text(stem(&settings.out))),
        ("general.finetune".to_owned(), Meta::text(stem(&settings.adapter))),
        ("general.file_type".to_owned(), Meta::U32(settings.float.kind().1)),
        ("general.base_model.count".to_owned(), Meta::U32(1)),
        ("general.base_model.0.name".to_owned(), Meta::text(base.text("general.name")?.unwrap_or(&stem(&base.path)))),
    ];
    let template = template_of_adapter(settings, merger)?;
    own.extend(template.iter().flat_map(template_keys));
    let replaced = |key: &str| {
        let of_base = key.starts_with("general.base_model.") || key.starts_with("split.") || key == "general.alignment";
        let of_template = template.is_some() && key.starts_with("tokenizer.chat_template");
        of_base || of_template || own.iter().any(|(own, _)| own == key)
    };
    let mut records = Vec::new();
    for (key, place) in base.records.iter().filter(|(key, _)| !replaced(key)) {
        let record = base.record(place)?;
        // llama.cpp wants the architecture first.
        let at = if key == "general.architecture" { 0 } else { records.len() };
        records.insert(at, record);
    }
    records.extend(own.iter().map(|(key, value)| value.record(key)));
    Ok(records)
}

/// The keys of a model directory as llama.cpp's converter writes them, and its vectors that stand for keys.
#[expect(clippy::type_complexity, reason = "the two lists that a file begins with")]
fn own_keys(
    settings: &GgufMergeSettings,
    merger: &Merger,
    architecture: Architecture,
) -> Result<(Vec<Vec<u8>>, Vec<(String, Vec<f32>)>)> {
    let (model, config) = (&settings.model, &merger.source.config);
    let ModelKeys { keys: of_model, vectors } = model_keys(model, config, architecture)?;
    let mut keys = vec![
        ("general.architecture".to_owned(), Meta::text(architecture.name)),
        ("general.type".to_owned(), Meta::text("model")),
        ("general.name".to_owned(), Meta::text(stem(&settings.out))),
        ("general.finetune".to_owned(), Meta::text(stem(&settings.adapter))),
        ("general.base_model.count".to_owned(), Meta::U32(1)),
        ("general.base_model.0.name".to_owned(), Meta::text(stem(model))),
        ("general.quantization_version".to_owned(), Meta::U32(2)),
        ("general.file_type".to_owned(), Meta::U32(settings.float.kind().1)),
    ];
    keys.extend(of_model);
    if merger.source.has_tokenizer() {
        let tokenizer = Tokenizer::from_dir(model, config)?;
        let path = model.join("tokenizer.json");
        let fields = parse_object(&path, &tokenizer_text(model)?)?;
        let special = tokenizer.special_tokens()?;
        let of_tokenizer = tokenizer_keys(&path, &fields, config.vocab_size, &special)?;
        keys.extend(of_tokenizer.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let own = || ChatTemplate::load(model, None, special.clone());
        let template = template_of_adapter(settings, merger)?.map_or_else(own, |template| Ok(Some(template)))?;
        keys.extend(template.iter().flat_map(template_keys));
    } else {
        keys.push(("tokenizer.ggml.model".to_owned(), Meta::text("none")));
    }
    Ok((keys.iter().map(|(key, value)| value.record(key)).collect(), vectors))
}

/// Writes Ollama's `Modelfile` beside the file: where the model lies, and the tokens that end an answer.
fn write_modelfile(settings: &GgufMergeSettings, merger: &Merger) -> Result<Option<PathBuf>> {
    if !merger.source.has_tokenizer() {
        return Ok(None);
    }
    let adapters = std::slice::from_ref(&settings.adapter);
    let format = TextFormat::load(&settings.model, &merger.source.config, &TemplateChoice::Own, &[], adapters)?;
    let name = settings.out.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut text = format!("FROM ./{name}\n");
    let ends = format.end_tokens.iter().filter_map(|id| format.tokenizer.token(*id)).chain(format.end_text);
    for end in ends {
        text += &format!("PARAMETER stop {}\n", serde_json::Value::from(end));
    }
    let path = settings.out.with_extension("Modelfile");
    files::write_atomically(&path, text.as_bytes())?;
    Ok(Some(path))
}
