//! Adapter directories as PEFT saves and loads them: `adapter_model.safetensors`, `adapter_config.json`, `README.md`.

use std::collections::HashMap;
use std::f64::consts::PI;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::config::{LoraConfig, LoraInit};
use super::targets::{LoraModule, resolve};
use crate::files::{self, write_atomically};
use crate::model::config::{ModelConfig, Projection};
use crate::model::listing::Entry;
use crate::model::safetensors_file::read_header;
use crate::random::{Stream, uniform};
use crate::{Error, Result};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// The trained matrices of every module, in the modules' order.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensors {
    /// Pairs of A `[rank, in_features]` and B `[out_features, rank]`, row-major.
    pub tensors: Vec<(Vec<f32>, Vec<f32>)>,
}

/// An adapter as its directory holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedAdapter {
    pub config: LoraConfig,
    /// The modules that `config` means in the model that the adapter was loaded for.
    pub modules: Vec<LoraModule>,
    /// In the order of `modules`.
    pub tensors: AdapterTensors,
}

/// The sizes of A and B: `([rank, in_features], [out_features, rank])`.
pub fn shapes(module: &LoraModule, model: &ModelConfig) -> ([usize; 2], [usize; 2]) {
    let (rows, columns) = model.projection_shape(module.projection);
    ([module.rank, columns], [rows, module.rank])
}

/// New adapters, whose B is zero so that training starts at the base model. A module's draws depend on its place alone,
/// so adding modules changes no other's start.
pub fn init(modules: &[LoraModule], model: &ModelConfig, seed: u64, kind: LoraInit) -> AdapterTensors {
    let start = |module: &LoraModule| {
        let (a, b) = shapes(module, model);
        let item = (module.layer * Projection::ALL.len() + module.projection as usize) as u64;
        let bound = 1.0 / (a[1] as f32).sqrt();
        let draw = |index: usize| {
            let draw = |index: usize| uniform(seed, Stream::LoraInit, item, index as u64);
            match kind {
                LoraInit::KaimingUniform => (2.0 * draw(index) - 1.0) * bound,
                LoraInit::Gaussian => {
                    // Box and Muller's pair; 1 - u keeps the logarithm's argument above zero.
                    let radius = (-2.0 * (1.0 - f64::from(draw(2 * index))).ln()).sqrt();
                    let angle = 2.0 * PI * f64::from(draw(2 * index + 1));
                    (radius * angle.cos() / module.rank as f64) as f32
                }
            }
        };
        ((0..a[0] * a[1]).map(draw).collect(), vec![0.0; b[0] * b[1]])
    };
    AdapterTensors { tensors: modules.iter().map(start).collect() }
}

fn tensor_names(module: &LoraModule) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("base_model.model.{}.{part}.weight", module.name()))
}

/// Writes the three files into `dir`, which is made if need be. The bytes depend on the arguments alone.
///
/// # Errors
/// A number that is not finite (files that are there stay as they are), or files that cannot be written.
pub fn save(dir: &Path, config: &LoraConfig, modules: &[LoraModule], adapter: &AdapterTensors) -> Result<()> {
    let broken = |values: &[f32]| values.iter().any(|v| !v.is_finite());
    if let Some((module, _)) = modules.iter().zip(&adapter.tensors).find(|(_, (a, b))| broken(a) || broken(b)) {
        let problem = "came to a value that is not finite, so the adapter is not saved; lower the learning rate";
        return Err(Error::Training(format!("the adapter of {} {problem}", module.name())));
    }
    files::create_dir_all(dir).map_err(|e| Error::file(dir, format!("cannot be made: {e}")))?;
    let weights = dir.join(WEIGHTS);
    let mut views = Vec::new();
    for (module, (a, b)) in modules.iter().zip(&adapter.tensors) {
        let [a_name, b_name] = tensor_names(module);
        let (a_shape, b_shape) = ([module.rank, a.len() / module.rank], [b.len() / module.rank, module.rank]);
        for (name, shape, values) in [(a_name, a_shape, a), (b_name, b_shape, b)] {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values));
            let view = view.map_err(|e| Error::field(&weights, &name, e))?;
            views.push((name, view));
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = serialize(views, Some(metadata)).map_err(|e| Error::file(&weights, e))?;
    write_atomically(&weights, &bytes)?;
    write_atomically(&dir.join("README.md"), model_card(config, modules).as_bytes())?;
    write_atomically(&dir.join(CONFIG), config.to_json().as_bytes())
}

fn model_card(config: &LoraConfig, modules: &[LoraModule]) -> String {
    let mut card = String::from("---\n");
    let base = config.base_model_name_or_path.as_deref();
    if let Some(base) = base {
        // A JSON string is a YAML string, whatever the path holds.
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
    card + "Load it with `loraine generate --adapter DIR`, or with PEFT by `PeftModel.from_pretrained(model, DIR)`.\n"
}

/// Reads an adapter directory for `model`.
///
/// # Errors
/// Files that are missing or cannot be read, and any tensor that is missing, unexpected, of another shape or not finite;
/// the error names the tensor.
pub fn load(dir: &Path, model: &ModelConfig) -> Result<LoadedAdapter> {
    let config_path = dir.join(CONFIG);
    if !files::is_file(&config_path) {
        return Err(Error::file(dir, format!("holds no {CONFIG}; it is not a PEFT adapter")));
    }
    let config = LoraConfig::from_file(&config_path)?;
    let modules = resolve(&config, model).map_err(|e| match e {
        Error::Setting(problem) => Error::file(&config_path, problem),
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
    let mut tensors = Vec::with_capacity(modules.len());
    for module in &modules {
        let (a_shape, b_shape) = shapes(module, model);
        let [a, b] = tensor_names(module);
        tensors.push((read(&a, a_shape)?, read(&b, b_shape)?));
    }
    match entries.into_keys().next() {
        None => Ok(LoadedAdapter { config, modules, tensors: AdapterTensors { tensors } }),
        Some(name) => {
            let problem = format!("is unexpected: {CONFIG} and the base model have no place for it");
            Err(Error::field(&weights, name, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::lora::config::TargetModules;
    use crate::lora::targets::tests::model;
    use crate::model::safetensors_file::tests::file_bytes;

    fn small() -> (LoraConfig, Vec<LoraModule>) {
        let target_modules = TargetModules::Names(vec!["k_proj".into(), "down_proj".into()]);
        let config = LoraConfig { r: 2, target_modules, ..LoraConfig::default() };
        let modules = resolve(&config, &model()).unwrap();
        (config, modules)
    }

    #[test]
    fn new_adapters_have_pefts_distribution() {
        let config = LoraConfig { r: 64, ..LoraConfig::default() };
        let modules = resolve(&config, &model()).unwrap();
        let statistics = |kind| {
            let adapter = init(&modules, &model(), 3, kind);
            assert!(adapter.tensors.iter().all(|(_, b)| b.iter().all(|x| *x == 0.0)));
            let a: Vec<f32> = adapter.tensors[0].0.clone();
            assert_eq!((a.len(), adapter.tensors[6].0.len(), adapter.tensors[6].1.len()), (64 * 16, 64 * 24, 16 * 64));
            assert_ne!(a, adapter.tensors[1].0);
            let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
            (variance, a.iter().fold(0.0f32, |m, x| m.max(x.abs())))
        };
        let (variance, largest) = statistics(LoraInit::KaimingUniform);
        assert!((variance * 3.0 * 16.0 - 1.0).abs() < 0.1 && largest <= 0.25 && largest > 0.24, "{variance} {largest}");
        let (variance, largest) = statistics(LoraInit::Gaussian);
        assert!((variance * 64.0 * 64.0 - 1.0).abs() < 0.15 && largest * 64.0 > 2.5, "{variance} {largest}");
        let one = init(&modules[5..6], &model(), 3, LoraInit::Gaussian);
        assert_eq!(one.tensors[0], init(&modules, &model(), 3, LoraInit::Gaussian).tensors[5]);
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
        save(dir.path(), &config, &modules[1..], &AdapterTensors { tensors: adapter.tensors[1..].into() }).unwrap();
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
        adapter.tensors[2].1[5] = 1.5;
        save(dir.path(), &config, &modules, &adapter).unwrap();
        let mut damaged = fs::read(dir.path().join(WEIGHTS)).unwrap();
        let at = damaged.windows(4).rposition(|word| word == marked).unwrap();
        damaged[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(dir.path().join(WEIGHTS), damaged).unwrap();
        assert!(message().contains("layers.1.self_attn.k_proj.lora_B.weight`: holds NaN at element 5"));
        fs::write(dir.path().join(WEIGHTS), &good).unwrap();
        adapter.tensors[2].1[5] = f32::NAN;
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
