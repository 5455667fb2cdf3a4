//! Hugging Face model directories as they are written: weights, `config.json`, and the files that come along unchanged.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Map, Value};

use super::companions;
use super::config::{CONFIG, ModelConfig};
use super::families::FAMILIES;
use super::json_fields::{object_text, parse_object};
use super::tensor_source::TensorSource;
use super::tensors::{HEAD, NamedTensor, TensorSpec, matrices_then_vectors};
use crate::hub::is_license;
use crate::quant::format::Float;
use crate::setting::{DTYPE, LR};
use crate::{Error, Result, files};

/// Name of the file with a model's weights, where they are not split into shards.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that lists the shards of a model.
const INDEX: &str = "model.safetensors.index.json";
/// Companion files of a model: everything but weights and configuration.
const COMPANIONS: [&str; 14] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];
/// The files of a tokenizer.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];
/// Directory of chat templates with names of their own.
const FURTHER_TEMPLATES: &str = "additional_chat_templates";

/// True for the name of a file that a written model directory may hold.
pub fn is_model_file(name: &str) -> bool {
    let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    name == CONFIG
        || name == WEIGHTS
        || name == INDEX
        || shard(name)
        || COMPANIONS.contains(&name)
        || name == FURTHER_TEMPLATES
        || is_license(name)
}

/// Refuses companion files that are links out of the model's directory: what they lead to would be copied into a directory that is
/// made to be passed on. The files of a hub's cache are links into its `blobs`, beside the directory of the commit. With
/// `of_same_name`, links to files of their own name pass: people share tokenizers so.
///
/// # Errors
/// The file and what it leads to.
pub fn refuse_links(dir: &Path, of_same_name: bool) -> Result<()> {
    let whole = |path: &Path| files::canonicalize(path).ok();
    let Some(own) = whole(dir) else { return Ok(()) };
    let snapshots = own.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|repository| repository.join("blobs"));
    let further = files::names(&dir.join(FURTHER_TEMPLATES)).unwrap_or_default();
    let further = further.iter().map(|name| format!("{FURTHER_TEMPLATES}/{name}"));
    let licenses = files::names(dir).unwrap_or_default().into_iter().filter(|name| is_license(name));
    let companions = COMPANIONS.into_iter().chain([CONFIG, FURTHER_TEMPLATES]).map(str::to_owned);
    for name in companions.chain(licenses).chain(further) {
        let path = dir.join(name);
        let Some(to) = whole(&path) else { continue };
        let shared = of_same_name && to.file_name() == path.file_name();
        if !shared && !to.starts_with(&own) && !blobs.as_ref().is_some_and(|blobs| to.starts_with(blobs)) {
            let problem = format!(
                "is a link to {}, outside the model's directory, and would be copied; put the file itself there",
                to.display()
            );
            return Err(Error::file(path, problem));
        }
    }
    Ok(())
}

/// Copies the files that tell how to use the model at `from`, and its licenses; those that it lacks are left out.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    refuse_links(from, true)?;
    let licenses = files::names(from).unwrap_or_default().into_iter().filter(|name| is_license(name));
    for name in COMPANIONS.into_iter().map(str::to_owned).chain(licenses) {
        copy_file(from, to, &name)?;
    }
    copy_directory(from, to, FURTHER_TEMPLATES)
}

/// Copies the files of the tokenizer; those that `from` lacks are left out.
///
/// # Errors
/// A file that cannot be read or written.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    TOKENIZER.into_iter().try_for_each(|name| copy_file(from, to, name))
}

fn copy_file(from: &Path, to: &Path, name: &str) -> Result<()> {
    let path = from.join(name);
    if !companions::is_file(&path) {
        return Ok(());
    }
    let bytes = companions::bytes(&path)?;
    files::write_atomically(&to.join(name), &bytes)
}

/// Copies the files of a directory `name` below `from`.
fn copy_directory(from: &Path, to: &Path, name: &str) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    if !files::is_dir(&from) {
        return Ok(());
    }
    let names = files::names(&from).map_err(|e| Error::file(&from, format!("cannot be read: {e}")))?;
    files::create_dir_all(&to).map_err(|e| Error::file(&to, format!("cannot be made: {e}")))?;
    names.iter().try_for_each(|name| copy_file(&from, &to, name))
}

/// Sets `tie_word_embeddings` where the files have decided otherwise than it says.
pub(crate) fn say_tied(config: &mut Map<String, Value>, tied: bool) {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let family = FAMILIES.into_iter().find(|family| Some(family.model_type) == model_type);
    let absent = family.is_some_and(|family| family.tie_word_embeddings);
    let said = config.get("tie_word_embeddings").and_then(Value::as_bool);
    // Families and models of several modalities differ in what an absent key means.
    if config.contains_key("text_config") || said.unwrap_or(false) != tied || (said.is_none() && absent) {
        config.insert("tie_word_embeddings".to_owned(), tied.into());
    }
    // The key of older files of LFM2, which goes before the other.
    if config.contains_key("tie_embedding") {
        config.insert("tie_embedding".to_owned(), tied.into());
    }
}

/// Sets `vocab_size` where the vocabulary has grown.
fn say_vocabulary(config: &mut Map<String, Value>, vocabulary: usize) {
    match config.get_mut("text_config").and_then(Value::as_object_mut) {
        Some(text) => say_vocabulary(text, vocabulary),
        None => {
            config.insert("vocab_size".to_owned(), vocabulary.into());
        }
    }
}

/// Writes `config.json` of `from` with the type of the new weights; `tied` models have no head of their own, and a `vocabulary` that has
/// grown is named.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write_config(from: &Path, to: &Path, float: Float, tied: bool, vocabulary: Option<usize>) -> Result<()> {
    let path = from.join(CONFIG);
    let text = companions::text(&path)?;
    let mut fields = parse_object(&path, &text)?;
    say_tied(&mut fields, tied);
    if let Some(vocabulary) = vocabulary {
        say_vocabulary(&mut fields, vocabulary);
    }
    // transformers 5 calls it `dtype`.
    let key = if fields.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    fields.insert(key.to_owned(), float.torch_name().into());
    // The written weights are in full precision, so a quantization entry would be wrong; experts in MXFP4 stay as they are.
    let method = fields.get("quantization_config").and_then(|config| config.get("quant_method"));
    if method.and_then(Value::as_str) != Some("mxfp4") {
        fields.remove("quantization_config");
    }
    files::write_atomically(&to.join(CONFIG), object_text(&fields).as_bytes())
}

/// Values in the bytes of a safetensors file, rounded to nearest even.
pub fn float_bytes(values: &[f32], float: Float) -> Vec<u8> {
    match float {
        Float::F32 => bytemuck::cast_slice(values).to_vec(),
        Float::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Every tensor of the model in `dir`, in f32 and in the order in which `network::trained` reads and writes them.
///
/// # Errors
/// Weights that are missing, damaged or of another shape than `config` implies.
pub fn load(dir: &Path, config: &ModelConfig) -> Result<Vec<NamedTensor>> {
    let source = TensorSource::open(dir)?;
    let tensor = |TensorSpec { name, shape, .. }: TensorSpec| {
        let values = source.require(&name, &shape)?.read_f32()?;
        Ok(NamedTensor { name, shape, values })
    };
    matrices_then_vectors(config).into_iter().map(tensor).collect()
}

/// Writes a whole model into `to`, which is made if need be: weights in `float`, the rest from the model at `from`.
///
/// # Errors
/// A value that is not finite in `float` (files that are there stay as they are), or files that cannot be written.
pub fn save(to: &Path, from: &Path, tensors: &[NamedTensor], float: Float) -> Result<()> {
    let fits = |v: f32| match float {
        Float::F16 => f16::from_f32(v).is_finite(),
        Float::F32 | Float::Bf16 => v.is_finite(),
    };
    if let Some(tensor) = tensors.iter().find(|t| !t.values.iter().all(|v| fits(*v))) {
        return Err(Error::Training(format!(
            "{} has a value that is not finite as {float}, so the model is not saved; lower {LR}, or save with another {DTYPE}",
            tensor.name,
        )));
    }
    files::create_dir_all(to).map_err(|e| Error::file(to, format!("cannot be made: {e}")))?;
    let path = to.join(WEIGHTS);
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| float_bytes(&t.values, float)).collect();
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, bytes)| {
            let view = TensorView::new(float.dtype(), t.shape.clone(), bytes);
            Ok((t.name.as_str(), view.map_err(|e| Error::field(&path, &t.name, e))?))
        })
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    files::write_atomically(&path, &serialize(views, Some(metadata)).map_err(|e| Error::file(&path, e))?)?;
    copy_companions(from, to)?;
    let tied = !tensors.iter().any(|tensor| tensor.name == HEAD);
    write_config(from, to, float, tied, None)
}
