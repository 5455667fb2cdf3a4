//! Adapter directories as PEFT saves and loads them: `adapter_model.safetensors`, `adapter_config.json`, `README.md`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::config::LoraConfig;
use super::factors::{AdapterTensors, Factor, ModuleFactors, factors};
use super::targets::{LoraModule, resolve};
use crate::files::{self, write_atomically};
use crate::model::config::ModelConfig;
use crate::model::listing::Entry;
use crate::model::modules::Projection;
use crate::model::safetensors_file::read_header;
use crate::setting::written;
use crate::{Error, Result};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const CARD: &str = "README.md";
/// The last line of the card.
const LOADING: &str = "`loraine chat` and `loraine generate` load it with `--adapter DIR`, and PEFT by \
                       `PeftModel.from_pretrained(model, DIR)`.\n";

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

/// Writes the three files into `dir` and creates it where it is missing. The bytes depend only on the arguments.
///
/// # Errors
/// A value is not finite (existing files then stay as they are), or a file cannot be written.
pub fn save(dir: &Path, config: &LoraConfig, modules: &[LoraModule], adapter: &AdapterTensors) -> Result<()> {
    let broken = |factors: &ModuleFactors| factors.0.iter().flatten().any(|v| !v.is_finite());
    if let Some((module, _)) = modules.iter().zip(&adapter.modules).find(|(_, factors)| broken(factors)) {
        let problem = "came to a value that is not finite, so the adapter is not saved; lower the learning rate";
        return Err(Error::Training(format!("the adapter of {} {problem}", module.name())));
    }
    files::create_dir_all(dir).map_err(|e| Error::file(dir, format!("cannot be made: {e}")))?;
    let weights = dir.join(WEIGHTS);
    let mut views = Vec::new();
    for (module, values) in modules.iter().zip(&adapter.modules) {
        for (factor, values) in Factor::ALL.into_iter().zip(&values.0) {
            let name = factor.tensor(module);
            let shape = factor.shape_of(module.rank, values.len()).to_vec();
            let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values));
            let view = view.map_err(|e| Error::field(&weights, &name, e))?;
            views.push((name, view));
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = serialize(views, Some(metadata)).map_err(|e| Error::file(&weights, e))?;
    write_atomically(&weights, &bytes)?;
    write_atomically(&dir.join(CARD), model_card(config, modules).as_bytes())?;
    write_atomically(&dir.join(CONFIG), config.to_json().as_bytes())
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
        "A low-rank adapter for {}, trained with loraine: rank {}, alpha {}, {} adapted linear layers.\n\n",
        base.map_or("its base model".to_owned(), |base| format!("`{base}`")),
        config.r,
        config.lora_alpha,
        modules.len()
    );
    card + LOADING
}

/// Names the command that tries the adapter in the card that [`save`] wrote into `dir`.
///
/// # Errors
/// The card cannot be read or written.
pub fn add_command(dir: &Path, command: &str) -> Result<()> {
    let path = dir.join(CARD);
    let card = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    write_atomically(&path, card.replace(LOADING, &format!("Try it:\n\n```sh\n{command}\n```\n\n{LOADING}")).as_bytes())
}

/// Reads an adapter directory for `model`.
///
/// # Errors
/// Files that are missing or cannot be read, and any tensor that is missing, unexpected, of another shape or not finite;
/// the error names the tensor.
pub fn load(dir: &Path, model: &ModelConfig) -> Result<LoadedAdapter> {
    let config_path = dir.join(CONFIG);
    if !files::exists(dir) {
        return Err(Error::file(dir, "does not exist, so it is not an adapter directory"));
    }
    if !files::is_file(&config_path) {
        return Err(Error::file(dir, format!("holds no {CONFIG}; it is not a PEFT adapter")));
    }
    let config = LoraConfig::from_file(&config_path)?;
    let modules = resolve(&config, model).map_err(|e| match e {
        // PEFT writes its keys with underscores.
        Error::Setting { problem, .. } => Error::file(&config_path, written(&problem, |key, _| key.replace('-', "_"))),
        other => other,
    })?;
    let weights = dir.join(WEIGHTS);
    if !files::is_file(&weights) && files::is_file(&dir.join("adapter_model.bin")) {
        return Err(Error::file(
            dir,
            format!("holds adapter_model.bin, which cannot be read; convert it to {WEIGHTS}"),
        ));
    }
    let mut entries = read_header(&weights)?;
    if let Some(problem) = foreign_base(&config, &entries, model) {
        return Err(Error::file(dir, problem));
    }
    let mut read = |name: &str, shape: [usize; 2]| -> Result<Vec<f32>> {
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
    let mut read_module = |module: &LoraModule| -> Result<ModuleFactors> {
        let values = factors(module, model).into_iter().map(|spec| read(&spec.tensor, spec.shape));
        values.collect::<Result<_>>().map(ModuleFactors)
    };
    let tensors = AdapterTensors { modules: modules.iter().map(&mut read_module).collect::<Result<_>>()? };
    match entries.into_keys().next() {
        None => Ok(LoadedAdapter { config, modules, tensors }),
        Some(name) => {
            let problem = format!("is unexpected: {CONFIG} and the base model have no place for it");
            Err(Error::field(&weights, name, problem))
        }
    }
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
        let adapter = init(&modules, &model(), 1, LoraInit::KaimingUniform);
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
        let mut adapter = init(&modules, &model(), 1, LoraInit::KaimingUniform);
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
        assert!(message().contains("adapter_model.bin, which cannot be read"));
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
