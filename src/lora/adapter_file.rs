//! Adapter directories as PEFT saves and loads them: `adapter_model.safetensors`, `adapter_config.json`, `README.md`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::config::{LoraConfig, TargetModules, merge_command};
use super::factors::{AdapterTensors, Factor, FactorSpec, ModuleFactors, factors};
use super::targets::{LoraModule, Place, resolve};
use crate::files::{self, write_atomically, write_owned_atomically};
use crate::hub::python_text;
use crate::model::config::ModelConfig;
use crate::model::listing::{Entry, TensorInfo};
use crate::model::model_directory::float_bytes;
use crate::model::modules::{EMBEDDING as EMBEDDING_MODULE, HEAD, MODEL as DECODER, Projection, last_part};
use crate::model::safetensors_file::read_header;
use crate::model::source::Source;
use crate::model::tensor_source::TensorSource;
use crate::model::tensors::EMBEDDING;
use crate::model::wrapper::{in_decoder, text_name};
use crate::setting::{MODEL, written};
use crate::{Error, Result};

const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
const CONFIG: &str = "adapter_config.json";
const CARD: &str = "README.md";
/// The last line of the card.
const LOADING: &str = "`loraine chat` and `loraine generate` load it with `--adapter DIR`, and PEFT by \
                       `PeftModel.from_pretrained(model, DIR)`.\n";
/// Stands in every model card that this program writes.
const CARD_MARK: &str = "trained with loraine";
/// The name that PEFT puts before those of the base.
const PREFIX: &str = "base_model.model.";

/// An adapter as its directory holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedAdapter {
    /// The contents of `adapter_config.json`.
    pub config: LoraConfig,
    /// Modules that `config` selects in the model.
    pub modules: Vec<LoraModule>,
    /// Values in the order of `modules`.
    pub tensors: AdapterTensors,
}

/// Writes the three files into `dir` and creates it where it is missing. The bytes depend only on the arguments. A README.md that this
/// program has not written stays as it is.
///
/// # Errors
/// A value is not finite (existing files then stay as they are), or a file cannot be written.
pub fn save(dir: &Path, config: &LoraConfig, modules: &[LoraModule], adapter: &AdapterTensors) -> Result<()> {
    save_with(dir, config, modules, adapter, &[])
}

/// As [`save`], with the weights of an adapted embedding and head of `source` beside their factors, as PEFT saves them: whoever loads the
/// adapter may have a vocabulary that has grown.
///
/// # Errors
/// As [`save`], or a tensor of the base that cannot be read.
pub fn save_on(
    dir: &Path,
    config: &LoraConfig,
    modules: &[LoraModule],
    adapter: &AdapterTensors,
    source: &Source,
) -> Result<()> {
    let of_vocabulary = |module: &&LoraModule| !matches!(module.place, Place::Layer(..)) && module.is_adapted();
    let shape = vec![source.config.vocab_rows, source.config.hidden_size];
    let base = modules.iter().filter(of_vocabulary).map(|module| {
        let stored = module.base_tensor(&source.config, "weight");
        let float = source.stored(&stored);
        let bytes = float_bytes(&source.values(&stored, &shape)?, float);
        Ok((format!("{PREFIX}{}.base_layer.weight", module.name()), float.dtype(), shape.clone(), bytes))
    });
    save_with(dir, config, modules, adapter, &base.collect::<Result<Vec<_>>>()?)
}

/// A tensor of a file: name, type, shape and bytes.
type FileTensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn save_with(
    dir: &Path,
    config: &LoraConfig,
    modules: &[LoraModule],
    adapter: &AdapterTensors,
    base: &[FileTensor],
) -> Result<()> {
    let broken = |factors: &ModuleFactors| factors.0.iter().flatten().any(|v| !v.is_finite());
    if let Some((module, _)) = modules.iter().zip(&adapter.modules).find(|(_, factors)| broken(factors)) {
        let problem = "came to a value that is not finite, so the adapter is not saved; lower the learning rate";
        return Err(Error::Training(format!("the adapter of {} {problem}", module.name())));
    }
    files::create_dir_all(dir).map_err(|e| Error::file(dir, format!("cannot be made: {e}")))?;
    let weights = dir.join(WEIGHTS);
    let tensors = file_tensors(modules, adapter);
    let mut views = Vec::new();
    for (name, shape, values) in &tensors {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values));
        views.push((name.as_str(), view.map_err(|e| Error::field(&weights, name, e))?));
    }
    for (name, dtype, shape, bytes) in base {
        let view = TensorView::new(*dtype, shape.clone(), bytes);
        views.push((name.as_str(), view.map_err(|e| Error::field(&weights, name, e))?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = serialize(views, Some(metadata)).map_err(|e| Error::file(&weights, e))?;
    drop(tensors);
    write_owned_atomically(&weights, bytes)?;
    let card = dir.join(CARD);
    if !files::exists(&card) || is_own_card(&card) {
        write_atomically(&card, model_card(config, modules).as_bytes())?;
    }
    let config = match modules.first().filter(|module| module.decoder != DECODER) {
        Some(_) => in_one_expression(config, modules),
        None if config.target_modules == TargetModules::AllLinear => with_names(config, modules),
        None => config.clone(),
    };
    write_atomically(&dir.join(CONFIG), config.to_json().as_bytes())
}

/// The configuration with the names of the modules in place of `all-linear`.
fn with_names(config: &LoraConfig, modules: &[LoraModule]) -> LoraConfig {
    let mut names: Vec<String> = Vec::new();
    for name in modules.iter().filter(|module| module.is_adapted()).map(|module| last_part(module.path)) {
        if !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    LoraConfig { target_modules: TargetModules::Names(names), ..config.clone() }
}

/// The configuration with the modules as one expression: in a model of several modalities, PEFT would find the names of the decoder's
/// linear layers in the other parts too, and expect adapters there.
fn in_one_expression(config: &LoraConfig, modules: &[LoraModule]) -> LoraConfig {
    let mut of_layers: BTreeMap<Vec<&str>, Vec<String>> = BTreeMap::new();
    let mut adapted: Vec<(usize, &str)> = Vec::new();
    let mut others = Vec::new();
    for module in modules.iter().filter(|module| module.is_adapted()) {
        match module.place {
            Place::Layer(layer, _) if !module.is_of_all_layers() => adapted.push((layer, module.path)),
            _ if module.shares_a => {}
            _ => others.push(module.name().replace('.', r"\.")),
        }
    }
    for layer in adapted.chunk_by(|a, b| a.0 == b.0) {
        let mut names: Vec<&str> = layer.iter().map(|(_, path)| *path).collect();
        names.dedup();
        of_layers.entry(names).or_default().push(layer[0].0.to_string());
    }
    let decoder = modules[0].decoder;
    let part = |(names, layers): (Vec<&str>, Vec<String>)| {
        format!(
            r"{}\.layers\.(?:{})\.(?:{})",
            decoder.replace('.', r"\."),
            layers.join("|"),
            names.join("|").replace('.', r"\.")
        )
    };
    let parts: Vec<String> = of_layers.into_iter().map(part).chain(others).collect();
    LoraConfig {
        target_modules: TargetModules::Regex(parts.join("|")),
        layers_to_transform: None,
        exclude_modules: None,
        ..config.clone()
    }
}

/// The tensors of an adapter's file: name, shape and values. The parts of a fused layer are one module for PEFT, with one A and the rows
/// of B one after the other.
pub fn file_tensors<'a>(
    modules: &[LoraModule],
    adapter: &'a AdapterTensors,
) -> Vec<(String, Vec<usize>, Cow<'a, [f32]>)> {
    let mut tensors = Vec::new();
    let mut values = adapter.modules.iter();
    for parts in modules.chunk_by(|_, next| next.shares_a) {
        let values: Vec<&ModuleFactors> = values.by_ref().take(parts.len()).collect();
        let specs: Vec<Vec<FactorSpec>> = parts.iter().map(factors).collect();
        for (i, spec) in specs[0].iter().enumerate() {
            let whole = match &values[..] {
                [alone] => Cow::Borrowed(alone.0[i].as_slice()),
                parts => parts.iter().flat_map(|values| values.0[i].iter().copied()).collect(),
            };
            let [_, cols] = spec.shape;
            let shape = spec.factor.file_shape([specs.iter().map(|specs| specs[i].shape[0]).sum(), cols]);
            tensors.push((spec.tensor.clone(), shape, spec.factor.to_file(whole, cols)));
        }
    }
    tensors
}

/// True for a model card that this program has written.
pub fn is_own_card(path: &Path) -> bool {
    files::read_to_string(path).is_ok_and(|text| text.contains(CARD_MARK))
}

fn model_card(config: &LoraConfig, modules: &[LoraModule]) -> String {
    let mut card = String::from("---\n");
    let base = config.base_model_name_or_path.as_deref();
    if let Some(base) = base {
        // Every JSON string is a YAML string, so any path can be quoted as JSON.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        card += &format!("base_model: {}\nlibrary_name: peft\npipeline_tag: text-generation\n", quoted(base));
        card += &format!("tags:\n- {}\n", quoted(&format!("base_model:adapter:{base}")));
    } else {
        card += "library_name: peft\npipeline_tag: text-generation\ntags:\n";
    }
    card += "- lora\n- transformers\n---\n\n# LoRA adapter\n\n";
    card += &format!(
        "A low-rank adapter for {}, {CARD_MARK}: rank {}, alpha {}, {} adapted linear layers.\n\n",
        base.map_or("its base model".to_owned(), |base| format!("`{base}`")),
        config.r,
        config.lora_alpha,
        modules.iter().filter(|module| !module.shares_a).count()
    );
    card + LOADING
}

/// Names the command that tries the adapter in the card that [`save`] wrote into `dir`.
///
/// # Errors
/// The card cannot be read or written.
pub fn add_command(dir: &Path, command: &str) -> Result<()> {
    let path = dir.join(CARD);
    if !is_own_card(&path) {
        return Ok(());
    }
    let card = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    write_atomically(&path, card.replace(LOADING, &format!("Try it:\n\n```sh\n{command}\n```\n\n{LOADING}")).as_bytes())
}

/// The directory of the adapter at `dir`: itself, or the only folder in it that holds one.
///
/// # Errors
/// No adapter, or several.
pub fn locate(dir: &Path) -> Result<PathBuf> {
    let holds_one = |dir: &PathBuf| files::is_file(&dir.join(CONFIG));
    if holds_one(&dir.to_owned()) {
        return Ok(dir.to_owned());
    }
    let below = |dir: &Path| -> Vec<PathBuf> {
        let mut names = files::names(dir).unwrap_or_default();
        names.sort();
        names.iter().filter(|name| !name.starts_with('.')).map(|name| dir.join(name)).collect()
    };
    let folders = below(dir);
    let mut found: Vec<PathBuf> = folders.iter().filter(|dir| holds_one(dir)).cloned().collect();
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    if found.is_empty() {
        found = folders.iter().flat_map(|dir| below(dir)).filter(holds_one).collect();
    }
    let problem = if !found.is_empty() {
        let names: Vec<String> = found.iter().map(|dir| dir.display().to_string()).collect();
        format!("holds no {CONFIG} itself, but folders in it do: {}; give one of them", names.join(", "))
    } else if !files::is_dir(dir) {
        format!("holds no {CONFIG}: there is no such directory; it is not a PEFT adapter")
    } else if files::is_file(&dir.join("config.json")) {
        format!("holds no {CONFIG}, but a model; it is not a PEFT adapter: give it as {MODEL}")
    } else {
        format!("holds no {CONFIG}; it is not a PEFT adapter")
    };
    Err(Error::file(dir, problem))
}

/// Gives the model of `source` the vocabulary of an adapter in `dir` that brings whole matrices with more rows: transformers' users
/// resize the embedding where they add tokens, and PEFT then saves embedding and head.
///
/// # Errors
/// Files of the adapter that cannot be read.
pub fn follow_vocabulary(dir: &Path, source: &mut Source) -> Result<()> {
    let dir = &locate(dir)?;
    let weights = dir.join(WEIGHTS);
    if !files::is_file(&weights) {
        return Ok(());
    }
    let whole = [EMBEDDING_MODULE, HEAD]
        .map(|module| format!("{PREFIX}{}.{}", in_decoder(source.config.decoder(), module), Factor::Whole.name()));
    for (name, entry) in read_header(&weights)? {
        if let Entry::Float(info) = entry
            && whole.contains(&canonical(&name, source.config.decoder()))
            && let [rows, columns] = info.shape[..]
            && columns == source.config.hidden_size
        {
            source.config.vocab_size = source.config.vocab_size.max(rows);
        }
    }
    let rows = LoraConfig::from_file(&dir.join(CONFIG)).map(|config| grown_rows(&config, &source.config)).unwrap_or(0);
    source.config.vocab_size = source.config.vocab_size.max(rows);
    Ok(())
}

/// The number of tokens of a vocabulary that grew by rows of the adapter: the embedding and a head of its own have one for each token
/// beyond the base's.
fn grown_rows(config: &LoraConfig, model: &ModelConfig) -> usize {
    let end_of = |module: &str| -> Option<usize> {
        let (_, tokens) = config.trainable_token_indices.iter().find(|(of, _)| module.ends_with(of.as_str()))?;
        let new: BTreeSet<usize> =
            tokens.iter().map(|token| *token as usize).filter(|token| *token >= model.vocab_rows).collect();
        let end = model.vocab_rows + new.len();
        (new.last().is_some_and(|last| last + 1 == end)).then_some(end)
    };
    let embedding = end_of(EMBEDDING_MODULE);
    match model.tie_word_embeddings || end_of(HEAD) == embedding {
        true => embedding.unwrap_or(0),
        false => 0,
    }
}

/// Lists embedding and head of a vocabulary that grew as saved modules, since PEFT saves them without saying so, and refuses an adapter
/// that lacks one of them.
fn with_grown_modules(config: LoraConfig, weights: &Path, model: &ModelConfig) -> Result<LoraConfig> {
    if model.vocab_size == model.vocab_rows {
        return Ok(config);
    }
    let names: Vec<String> = read_header(weights)?.into_keys().map(|name| canonical(&name, model.decoder())).collect();
    let has = |module: &str| {
        names.contains(&format!("{PREFIX}{}.{}", in_decoder(model.decoder(), module), Factor::Whole.name()))
    };
    let mut modules_to_save = config.modules_to_save.clone();
    match [EMBEDDING_MODULE, HEAD].map(|module| (module, has(module))) {
        // An adapter for the vocabulary as it was, beside one that grew it.
        [(_, false), (_, false)] => {}
        [(_, true), (_, true)] => {
            for name in [EMBEDDING_MODULE, HEAD].map(last_part) {
                if !modules_to_save.iter().any(|saved| name.ends_with(last_part(saved))) {
                    modules_to_save.push(name.to_owned());
                }
            }
        }
        [embedding, head] => {
            let missing = if embedding.1 { head.0 } else { embedding.0 };
            let problem = format!(
                "brings a vocabulary of {} tokens for a base of {}, but not the whole {missing}; save both with PEFT \
                 (save_embedding_layers=True)",
                model.vocab_size, model.vocab_rows
            );
            return Err(Error::file(weights, problem));
        }
    }
    Ok(LoraConfig { modules_to_save, ..config })
}

/// Reads an adapter directory for `model`, whose weights are not at hand.
///
/// # Errors
/// As [`load_for`].
pub fn load(dir: &Path, model: &ModelConfig) -> Result<LoadedAdapter> {
    load_with(dir, model, None)
}

/// Reads an adapter directory for the model of `source`.
///
/// # Errors
/// Files that are missing or cannot be read, and any tensor that is missing, unexpected, of another shape or not finite;
/// the error names the tensor. Further tensors may be there if they equal those of the model.
pub fn load_for(dir: &Path, source: &Source) -> Result<LoadedAdapter> {
    load_with(dir, &source.config, Some(&source.tensors))
}

fn load_with(dir: &Path, model: &ModelConfig, base: Option<&TensorSource>) -> Result<LoadedAdapter> {
    let dir = &locate(dir)?;
    let config_path = dir.join(CONFIG);
    let config = with_grown_modules(LoraConfig::from_file(&config_path)?, &dir.join(WEIGHTS), model)?;
    let modules = resolve(&config, model).map_err(|e| match e {
        Error::Setting { problem, .. } => {
            // PEFT writes its keys with underscores.
            Error::file(&config_path, written(&problem, |key, _| key.replace('-', "_")))
        }
        other => other,
    })?;
    let weights = dir.join(WEIGHTS);
    if !files::is_file(&weights) && files::is_file(&dir.join(PICKLE)) {
        let problem =
            format!("holds {PICKLE}, a pickle, which is not read; convert it to {WEIGHTS}: {}", unpickle(dir));
        return Err(Error::file(dir, problem));
    }
    let mut entries = BTreeMap::new();
    for (name, entry) in read_header(&weights)? {
        // The frozen copy beside a trained one, which PEFT saves where a vocabulary has grown.
        if name.contains(".original_module.") {
            continue;
        }
        if let Some(other) = entries.insert(canonical(&name, model.decoder()), entry)
            && !same_values(&other, entries.get(&canonical(&name, model.decoder())))?
        {
            return Err(Error::field(&weights, name, "stands there twice, under two spellings of its name"));
        }
    }
    if let Some(problem) = foreign_base(&config, &entries, model) {
        return Err(Error::file(dir, problem));
    }
    let mut read = |name: &str, shape: Vec<usize>| -> Result<Vec<f32>> {
        let error = |problem: String| Error::field(&weights, name, problem);
        let info = match entries.remove(name) {
            Some(Entry::Float(info)) => info,
            Some(Entry::Other(raw)) => {
                return Err(error(format!("has the type {}; supported are F32, F16 and BF16", raw.dtype)));
            }
            None => return Err(error(format!("is missing; {CONFIG} asks for it with shape {shape:?}"))),
        };
        if info.shape != shape {
            let asked = format!("{CONFIG} and the base model ask for {shape:?}");
            return Err(error(format!("has shape {:?}, but {asked}", info.shape)));
        }
        let values = info.read_f32()?;
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(at) => {
                Err(error(format!("holds {} at element {at}; an adapter's numbers must be finite", values[at])))
            }
        }
    };
    let mut tensors = AdapterTensors::default();
    for parts in modules.chunk_by(|_, next| next.shares_a) {
        let specs: Vec<_> = parts.iter().map(factors).collect();
        let mut of_parts = vec![ModuleFactors::default(); parts.len()];
        for (i, FactorSpec { factor, shape: [_, columns], tensor }) in specs[0].iter().enumerate() {
            let rows = specs.iter().map(|specs| specs[i].shape[0]).sum();
            let whole = factor.from_file(read(tensor, factor.file_shape([rows, *columns]))?, rows);
            let mut rest = whole.as_slice();
            for (part, specs) in of_parts.iter_mut().zip(&specs) {
                let (values, after) = rest.split_at(specs[i].elements());
                part.0.push(values.to_vec());
                rest = after;
            }
        }
        tensors.modules.extend(of_parts);
    }
    for (name, entry) in entries {
        check_further(&name, &entry, base, dir).map_err(|problem| Error::field(&weights, name, problem))?;
    }
    Ok(LoadedAdapter { config, modules, tensors })
}

/// The command that converts the pickled weights of the adapter in `dir`.
fn unpickle(dir: &Path) -> String {
    let dir = python_text(&dir.display().to_string());
    format!(
        "python -c \"import torch; from safetensors.torch import save_file as s; d = {dir}; \
         w = torch.load(d + '/{PICKLE}', map_location='cpu', weights_only=True); \
         s({{k: v.contiguous() for k, v in w.items()}}, d + '/{WEIGHTS}')\""
    )
}

/// The name that PEFT gives a tensor in its files, from a name with the adapter's in it (`lora_A.default.weight`), from a compiled or
/// distributed module, or from a decoder without its head.
fn canonical(name: &str, decoder: &str) -> String {
    let name =
        name.replace("_orig_mod.", "").replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    let mut name = name.strip_prefix("module.").unwrap_or(&name);
    // An adapter that was saved from a PEFT model inside another has the prefix twice.
    while let Some(inner) = name.strip_prefix(PREFIX) {
        name = inner;
    }
    let name = match ["layers.", "embed_tokens.", "norm."].iter().any(|part| name.starts_with(part)) {
        true => format!("{DECODER}.{name}"),
        false => text_name(name).unwrap_or_else(|| name.to_owned()),
    };
    let name = in_decoder(decoder, &name);
    if let Some((module, rest)) = name.split_once(".lora_B.")
        && rest.ends_with("bias")
    {
        return format!("{PREFIX}{module}.lora_B.bias");
    }
    for factor in Factor::NAMED {
        let part = format!(".{}", factor.name());
        // `.weight` alone, or after the name of an adapter.
        let is_ending = |rest: &str| {
            let rest = rest.strip_suffix(".weight").unwrap_or(rest);
            rest.is_empty() || rest.strip_prefix('.').is_some_and(|adapter| !adapter.contains('.'))
        };
        if let Some((module, rest)) = name.split_once(&part)
            && (factor.ending().is_empty() || rest.ends_with(".weight"))
            && is_ending(rest)
        {
            return format!("{PREFIX}{module}{part}{}", factor.ending());
        }
    }
    format!("{PREFIX}{name}")
}

/// Checks a tensor that is no factor of an adapted module: PEFT saves embedding and head where the vocabulary may have grown. One that
/// equals the base's changes nothing.
///
/// # Errors
/// A sentence that says what the tensor is.
fn check_further(name: &str, entry: &Entry, base: Option<&TensorSource>, dir: &Path) -> Result<(), String> {
    let of_base = name.strip_prefix(PREFIX).unwrap_or(name).replace(".base_layer.", ".");
    let of_base = text_name(&of_base).unwrap_or(of_base);
    let tied = (of_base == format!("{HEAD}.weight")).then_some(EMBEDDING);
    let theirs = base.and_then(|base| base.get(&of_base).or_else(|| base.get(tied?)));
    let advice = || format!("merge it into its base with PEFT and take that model: {}", merge_command(dir));
    let (Entry::Float(ours), Some(theirs)) = (entry, theirs) else {
        return Err(match (of_base.contains(".lora_"), of_base.ends_with(".bias")) {
            (true, _) if of_base.contains("lora_embedding") => {
                format!("is LoRA on an embedding, which is not supported; {}", advice())
            }
            (true, _)
                if ["vision", "visual", "audio", "multi_modal", "connector"]
                    .iter()
                    .any(|part| of_base.contains(part)) =>
            {
                "adapts a part of the model that is not its text decoder; only the decoder is read".to_owned()
            }
            (false, true) => format!("is a trained bias (`bias` of {CONFIG}), which is not supported; {}", advice()),
            _ => format!("is unexpected: {CONFIG} and the base model have no place for it"),
        });
    };
    if ours.shape != theirs.shape {
        return Err(format!(
            "has shape {:?}, but the base's has {:?}: an adapter that brings an embedding of new tokens is not supported; {}",
            ours.shape,
            theirs.shape,
            advice()
        ));
    }
    match equal(ours, theirs).map_err(|e| e.to_string())? {
        true => Ok(()),
        false => Err(format!(
            "is a whole tensor that was trained beside LoRA (`modules_to_save` or `bias` of {CONFIG}) and differs from the \
             base's, which is not supported; {}",
            advice()
        )),
    }
}

/// True for a tensor that stands in a file twice, with the same values: PEFT saves an embedding under two names where the vocabulary has
/// grown.
fn same_values(one: &Entry, other: Option<&Entry>) -> Result<bool> {
    match (one, other) {
        (Entry::Float(one), Some(Entry::Float(other))) if one.shape == other.shape => {
            one.all_pairs(other, |a, b| a == b)
        }
        _ => Ok(false),
    }
}

/// True if both tensors hold the values of one, at the precision of the adapter's.
fn equal(ours: &TensorInfo, theirs: &TensorInfo) -> Result<bool> {
    ours.all_pairs(theirs, |a, b| {
        a == b || a == half::bf16::from_f32(b).to_f32() || a == half::f16::from_f32(b).to_f32()
    })
}

/// Says that an adapter was trained on another model, from the width and the number of layers that its tensors show.
fn foreign_base(config: &LoraConfig, entries: &BTreeMap<String, Entry>, model: &ModelConfig) -> Option<String> {
    let base = config.base_model_name_or_path.as_deref().map_or("another model".to_owned(), |name| format!("`{name}`"));
    let layers =
        entries.keys().filter_map(|name| name.split(".layers.").nth(1)?.split('.').next()?.parse::<usize>().ok());
    let layers = layers.max().map_or(0, |last| last + 1);
    if layers > model.num_layers {
        let has = model.num_layers;
        return Some(format!("was trained on {base}, which has at least {layers} layers; this model has {has} layers"));
    }
    // The input of these projections is as wide as the model.
    let reads_all = |name: &str| {
        [Projection::Q, Projection::K, Projection::V, Projection::Gate, Projection::Up]
            .iter()
            .any(|projection| name.ends_with(&format!(".{}.lora_A.weight", projection.name())))
    };
    let width = entries.iter().find_map(|(name, entry)| match entry {
        Entry::Float(info) if reads_all(name) => info.shape.get(1).copied(),
        _ => None,
    })?;
    let has = model.hidden_size;
    (width != has).then(|| format!("was trained on {base}, which has width {width}; this model has width {has}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lora::config::{LoraInit, TargetModules};
    use crate::lora::factors::init;
    use crate::lora::targets::tests::model;
    use crate::model::safetensors_file::tests::file_bytes;

    fn small() -> (LoraConfig, Vec<LoraModule>) {
        let target_modules = TargetModules::Names(vec!["k_proj".into(), "down_proj".into()]);
        let config = LoraConfig { r: 2, target_modules, ..LoraConfig::default() };
        let modules = resolve(&config, &model()).unwrap();
        (config, modules)
    }

    #[test]
    fn saving_twice_gives_the_same_bytes_and_loading_gives_the_tensors_back() {
        let (config, modules) = small();
        let adapter = init(&modules, 1, LoraInit::KaimingUniform);
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "deep/b"] {
            save(&dir.path().join(name), &config, &modules, &adapter).unwrap();
        }
        for file in [WEIGHTS, CONFIG, "README.md"] {
            let [a, b] = ["a", "deep/b"].map(|name| fs::read(dir.path().join(name).join(file)).unwrap());
            assert!(!a.is_empty() && a == b);
        }
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 3);
        let loaded = LoadedAdapter { config, modules, tensors: adapter };
        assert_eq!(load(&dir.path().join("a"), &model()).unwrap(), loaded);
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (config, modules) = small();
        let mut adapter = init(&modules, 1, LoraInit::KaimingUniform);
        let message = || load(dir.path(), &model()).unwrap_err().to_string();
        assert!(message().contains("not a PEFT adapter"));
        save(dir.path(), &config, &modules[1..], &AdapterTensors { modules: adapter.modules[1..].into() }).unwrap();
        assert!(message().contains("layers.0.self_attn.k_proj.lora_A.weight`: is missing"));
        save(dir.path(), &config, &modules, &adapter).unwrap();
        for (changed, says) in [
            (LoraConfig { r: 4, ..config.clone() }, "lora_A.weight`: has shape [2, 16], but"),
            (
                LoraConfig { layers_to_transform: Some(vec![0, 1]), ..config.clone() },
                "layers.2.mlp.down_proj.lora_A.weight`: is unexpected",
            ),
        ] {
            fs::write(dir.path().join(CONFIG), changed.to_json()).unwrap();
            let message = message();
            assert!(message.contains(says), "{message}");
        }
        save(dir.path(), &config, &modules, &adapter).unwrap();
        let good = fs::read(dir.path().join(WEIGHTS)).unwrap();
        let marked = 1.5f32.to_le_bytes();
        adapter.modules[2][Factor::B][5] = 1.5;
        save(dir.path(), &config, &modules, &adapter).unwrap();
        let mut damaged = fs::read(dir.path().join(WEIGHTS)).unwrap();
        let at = damaged.windows(4).rposition(|word| word == marked).unwrap();
        damaged[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(dir.path().join(WEIGHTS), damaged).unwrap();
        assert!(message().contains("layers.1.self_attn.k_proj.lora_B.weight`: holds NaN at element 5"));
        fs::write(dir.path().join(WEIGHTS), &good).unwrap();
        adapter.modules[2][Factor::B][5] = f32::NAN;
        let refused = save(dir.path(), &config, &modules, &adapter).unwrap_err().to_string();
        assert!(refused.contains("the adapter of model.layers.1.self_attn.k_proj came to"), "{refused}");
        assert!(fs::read(dir.path().join(WEIGHTS)).unwrap() == good);
        let tensor = r#"{"base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight":
            {"dtype":"I8","shape":[2,16],"data_offsets":[0,32]}}"#;
        fs::write(dir.path().join(WEIGHTS), file_bytes(tensor, 32)).unwrap();
        assert!(message().contains("has the type I8"));
        fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        assert!(message().contains("cannot be read"));
        fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
        let message = message();
        assert!(
            message.contains("adapter_model.bin, a pickle") && message.contains("python -c \"import torch"),
            "{message}"
        );
    }

    #[test]
    fn other_spellings_of_names_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (config, modules) = small();
        let adapter = init(&modules, 1, LoraInit::KaimingUniform);
        save(dir.path(), &config, &modules, &adapter).unwrap();
        let good = load(dir.path(), &model()).unwrap();
        let rename = |from: &str, to: &str| {
            save(dir.path(), &config, &modules, &adapter).unwrap();
            let path = dir.path().join(WEIGHTS);
            let bytes = fs::read(&path).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let renamed: Vec<_> = tensors.iter().map(|(name, view)| (name.replace(from, to), view)).collect();
            fs::write(&path, serialize(renamed, None).unwrap()).unwrap();
        };
        for (from, to) in [
            ("weight", "default.weight"),
            ("weight", "my-adapter.weight"),
            ("base_model.model.", ""),
            ("base_model.model.model.", "base_model.model."),
            ("base_model.", "module._orig_mod.base_model."),
            ("base_model.model.", "base_model.model.base_model.model."),
        ] {
            rename(from, to);
            assert_eq!(load(dir.path(), &model()).unwrap(), good, "{from} as {to}");
        }
        rename("weight", "deep.er.weight");
        assert!(load(dir.path(), &model()).is_err());
    }

    #[test]
    fn an_adapter_one_folder_down_is_found_where_it_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let (config, modules) = small();
        let adapter = init(&modules, 1, LoraInit::KaimingUniform);
        save(&dir.path().join("default"), &config, &modules, &adapter).unwrap();
        assert_eq!(load(dir.path(), &model()).unwrap().tensors, adapter);
        save(&dir.path().join("other"), &config, &modules, &adapter).unwrap();
        let message = load(dir.path(), &model()).unwrap_err().to_string();
        assert!(message.contains("default, ") && message.contains("other; give one"), "{message}");
        let deep = tempfile::tempdir().unwrap();
        save(&deep.path().join("checkpoints/step-4"), &config, &modules, &adapter).unwrap();
        let message = load(deep.path(), &model()).unwrap_err().to_string();
        assert!(message.contains("checkpoints/step-4; give one"), "{message}");
        fs::write(deep.path().join("config.json"), "{}").unwrap();
        fs::remove_dir_all(deep.path().join("checkpoints")).unwrap();
        let message = load(deep.path(), &model()).unwrap_err().to_string();
        assert!(message.contains("but a model") && message.contains("⟨model⟩"), "{message}");
    }

    #[test]
    fn saved_tensors_that_equal_the_bases_change_nothing() {
        let base_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_untied");
        let source = Source::open(&base_dir).unwrap();
        let config = LoraConfig { r: 2, ..LoraConfig::default() };
        let modules = resolve(&config, &source.config).unwrap();
        let adapter = init(&modules, 1, LoraInit::KaimingUniform);
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &config, &modules, &adapter).unwrap();
        let good = fs::read(dir.path().join(WEIGHTS)).unwrap();
        let with = |name: &str, shape: &[usize], values: &[f32]| {
            let own = safetensors::SafeTensors::deserialize(&good).unwrap();
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values)).unwrap();
            let views: Vec<_> =
                own.iter().map(|(name, view)| (name.to_owned(), view)).chain([(name.to_owned(), view)]).collect();
            fs::write(dir.path().join(WEIGHTS), serialize(views, None).unwrap()).unwrap();
            load_for(dir.path(), &source)
        };
        let shape = [source.config.vocab_size, source.config.hidden_size];
        for name in [EMBEDDING, "lm_head.weight"] {
            let values = source.tensors.require(name, &shape).unwrap().read_f32().unwrap();
            let saved = format!("base_model.model.{name}");
            assert_eq!(with(&saved, &shape, &values).unwrap().tensors, adapter);
            let mut trained = values.clone();
            trained[7] += 0.5;
            let message = with(&saved, &shape, &trained).unwrap_err().to_string();
            assert!(message.contains("`modules_to_save`") && message.contains("merge_and_unload"), "{message}");
            let grown = [shape[0] - 1, shape[1]];
            let message = with(&saved, &grown, &values[shape[1]..]).unwrap_err().to_string();
            assert!(message.contains("embedding of new tokens"), "{message}");
            assert!(load(dir.path(), &source.config).is_err(), "without the base nothing can be compared");
        }
        let bias = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias";
        let message = with(bias, &[4], &[0.0; 4]).unwrap_err().to_string();
        assert!(message.contains("is a trained bias"), "{message}");
    }

    #[test]
    fn what_is_trained_of_embedding_and_head_goes_through_files() {
        let names = |names: &[&str]| TargetModules::Names(names.iter().map(|name| (*name).to_owned()).collect());
        let plain = LoraConfig { target_modules: names(&["q_proj"]), ..LoraConfig::default() };
        let rows = vec![("embed_tokens".to_owned(), vec![7, 3])];
        for config in [
            LoraConfig { target_modules: names(&["q_proj", "embed_tokens", "lm_head"]), ..plain.clone() },
            LoraConfig { modules_to_save: vec!["lm_head".into(), "embed_tokens".into()], ..plain.clone() },
            LoraConfig { trainable_token_indices: rows, ..plain.clone() },
        ] {
            let modules = resolve(&config, &model()).unwrap();
            let mut adapter = init(&modules, 1, LoraInit::KaimingUniform);
            for (module, values) in modules.iter().zip(&mut adapter.modules) {
                for (at, (spec, values)) in factors(module).iter().zip(&mut values.0).enumerate() {
                    *values = (0..spec.elements()).map(|i| (i * 7 + at) as f32).collect();
                }
            }
            let dir = tempfile::tempdir().unwrap();
            save(dir.path(), &config, &modules, &adapter).unwrap();
            assert_eq!(load(dir.path(), &model()).unwrap(), LoadedAdapter { config, modules, tensors: adapter });
        }
    }

    #[test]
    fn a_readme_of_another_hand_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (config, modules) = small();
        let adapter = init(&modules, 1, LoraInit::KaimingUniform);
        let card = dir.path().join(CARD);
        fs::write(&card, "# My notes").unwrap();
        save(dir.path(), &config, &modules, &adapter).unwrap();
        assert_eq!(fs::read_to_string(&card).unwrap(), "# My notes");
        fs::remove_file(&card).unwrap();
        save(dir.path(), &config, &modules, &adapter).unwrap();
        assert!(is_own_card(&card));
        save(dir.path(), &LoraConfig { lora_alpha: 3.0, ..config }, &modules, &adapter).unwrap();
        assert!(fs::read_to_string(&card).unwrap().contains("alpha 3"));
    }

    #[test]
    fn an_adapter_that_peft_wrote_round_trips_to_the_byte() {
        let dir = Path::new("../shared/reference/lora_stories260K_f32/adapter_init");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        }
        let model = ModelConfig::from_file(Path::new("../shared/models/stories260K/config.json")).unwrap();
        let LoadedAdapter { config, modules, tensors } = load(dir, &model).unwrap();
        assert_eq!((modules.len(), modules[0].rank, modules[0].scale), (35, 8, 2.0));
        let out = tempfile::tempdir().unwrap();
        save(out.path(), &config, &modules, &tensors).unwrap();
        for file in [WEIGHTS, CONFIG] {
            assert!(fs::read(out.path().join(file)).unwrap() == fs::read(dir.join(file)).unwrap(), "{file} differs");
        }
    }
}
