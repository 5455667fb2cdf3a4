//! A LoRA adapter as a GGUF file, for llama.cpp (`--lora`). The format: llama.cpp's `llama-adapter.cpp`.
//!
//! llama.cpp computes `y += s B (A x)` with `s = alpha / r` for one alpha of the whole file and the rank of each B. A module whose true
//! scale is another has it in its B, so that rank-stabilized scaling and patterns of ranks and alphas are exact.

use std::path::{Path, PathBuf};

use super::gguf_writer::{GgufWriter, Meta, PlannedTensor};
use crate::hub::HubModel;
use crate::lora::adapter_file::{self, LoadedAdapter};
use crate::lora::factors::Factor;
use crate::lora::targets::{LoraModule, Place};
use crate::model::config::ModelConfig;
use crate::model::gguf_blocks::GgmlType;
use crate::model::gguf_config::{Architecture, architecture_for};
use crate::model::gguf_file::{GgufFile, is_gguf};
use crate::model::gguf_tensors::PROJECTIONS;
use crate::model::listing::row_in_file;
use crate::model::modules::Projection;
use crate::model::source::Source;
use crate::{Error, Result};

/// Settings of an export.
#[derive(Clone, Debug)]
pub struct AdapterSettings {
    /// The base: a directory or a GGUF file.
    pub model: PathBuf,
    /// Directory of the PEFT adapter.
    pub adapter: PathBuf,
    /// The file to write.
    pub out: PathBuf,
    /// True to replace a file that is there.
    pub overwrite: bool,
}

/// Result of an export.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterExport {
    /// Number of adapted matrices.
    pub matrices: usize,
    /// `adapter.lora.alpha` of the file.
    pub alpha: f32,
    /// Matrices whose B holds a part of their scale.
    pub folded: usize,
}

/// Writes the adapter. Factors are stored in f32.
///
/// # Errors
/// The model or the adapter cannot be read or they do not fit together, the adapter is more than two factors for each matrix, llama.cpp
/// knows no such model, or the file cannot be written.
pub fn export(settings: &AdapterSettings) -> Result<AdapterExport> {
    let source = Source::open(&settings.model)?;
    let adapter = adapter_file::load_for(&settings.adapter, &source)?;
    let config = &source.config;
    let architecture = written_as(&settings.model, config)?;
    refuse_more_than_factors(&settings.adapter, &adapter.modules, config.tie_word_embeddings)?;
    refuse_fused_base(&settings.model, &adapter.modules)?;
    let (alpha, folded) = common_alpha(&adapter.modules);
    // Made twice, so that the values of one layer at a time lie in memory.
    let tensors = || file_tensors(&adapter, architecture, config, alpha);
    let planned = |(name, shape, _): Named| PlannedTensor { name, shape: shape.to_vec(), kind: GgmlType::F32 };
    let planned = tensors().map(planned).collect();
    let mut writer =
        GgufWriter::create(&settings.out, &keys(settings, architecture, alpha), planned, settings.overwrite)?;
    for (name, _, values) in tensors() {
        writer.write(&name, bytemuck::cast_slice(&values))?;
    }
    writer.finish()?;
    Ok(AdapterExport { matrices: adapter.modules.len(), alpha, folded })
}

/// The architecture as which llama.cpp knows a model.
pub(super) fn written_as(model: &Path, config: &ModelConfig) -> Result<Architecture> {
    let of_text = config.wrapper.is_none() || ["gemma3_text", "ministral3"].contains(&config.family.model_type);
    architecture_for(config.family).filter(|_| of_text).ok_or_else(|| {
        let kind = config.wrapper.map_or(config.family.model_type, |wrapper| wrapper.model_type);
        Error::file(model, format!("is a model of the kind `{kind}`, which is not written as GGUF yet"))
    })
}

/// Refuses what llama.cpp's adapters cannot hold: anything but two factors, and those of an embedding that is the head too.
fn refuse_more_than_factors(adapter: &Path, modules: &[LoraModule], tied: bool) -> Result<()> {
    let plain = |module: &LoraModule| {
        let factors = &module.factors[..];
        factors == Factor::PLAIN || factors == Factor::OF_EMBEDDING
    };
    let problem = |module: &&LoraModule| match module.place {
        _ if !plain(module) => Some("trains more than the two factors of LoRA"),
        Place::Embedding | Place::Head if tied => Some("changes an embedding that is the head too"),
        _ => None,
    };
    match modules.iter().find_map(|module| Some((module, problem(&module)?))) {
        None => Ok(()),
        Some((module, problem)) => {
            let problem = format!(
                "{problem} (on {}), which a GGUF adapter cannot hold; merge it into a model: `loraine merge --gguf`",
                module.name()
            );
            Err(Error::file(adapter, problem))
        }
    }
}

/// Refuses a GGUF base that holds queries, keys and values as one tensor where the adapter has them apart.
fn refuse_fused_base(model: &Path, modules: &[LoraModule]) -> Result<()> {
    if !is_gguf(model) {
        return Ok(());
    }
    let file = GgufFile::open(model)?;
    for module in modules {
        let Place::Layer(layer, projection) = module.place else { continue };
        let fused = format!("blk.{layer}.attn_qkv.weight");
        let apart = module.path == projection.module() && Projection::OF_ATTENTION_INPUT.contains(&projection);
        if apart && file.tensor(&fused).is_some() {
            let problem = format!(
                "holds queries, keys and values as one tensor, so that an adapter of {} has no place",
                module.name()
            );
            return Err(Error::field(model, fused, problem));
        }
    }
    Ok(())
}

/// The alpha of the file, that of the first module, and the number of modules whose scale is then in their B.
fn common_alpha(modules: &[LoraModule]) -> (f32, usize) {
    let Some(first) = modules.first() else { return (1.0, 0) };
    let alpha = first.scale * first.rank as f32;
    (alpha, modules.iter().filter(|module| fold(module, alpha) != 1.0).count())
}

/// The factor on a module's B: its true scale over that of llama.cpp.
fn fold(module: &LoraModule, alpha: f32) -> f32 {
    let theirs = alpha / module.rank as f32;
    if module.scale == theirs { 1.0 } else { module.scale / theirs }
}

/// Name, shape and values of a tensor.
type Named = (String, [usize; 2], Vec<f32>);

/// The file's tensors: of each linear layer, as it is in llama.cpp's files, A and B.
fn file_tensors(
    adapter: &LoadedAdapter,
    architecture: Architecture,
    config: &ModelConfig,
    alpha: f32,
) -> impl Iterator<Item = Named> {
    let mut start = 0;
    adapter.modules.chunk_by(|_, next| next.shares_a).flat_map(move |parts| {
        let values = &adapter.tensors.modules[start..start + parts.len()];
        let rank = parts[0].rank;
        let of_b = if parts[0].place == Place::Embedding { Factor::EmbeddingB } else { Factor::B };
        let mut b = Vec::new();
        for (module, values) in parts.iter().zip(values) {
            let own = values.of(module, of_b).unwrap_or_default();
            let rows = own.len() / rank;
            let turned = matches!(module.place, Place::Layer(_, Projection::Q | Projection::K));
            let head = (architecture.permuted && turned).then_some(config.head_dim);
            let factor = fold(module, alpha);
            let mut places = vec![0; rows];
            (0..rows).for_each(|row| places[row_in_file(row, head)] = row);
            b.extend(places.iter().flat_map(|row| &own[row * rank..][..rank]).map(|v| v * factor));
        }
        // Of an embedding llama.cpp takes the row of a token, so that A lies as on the device.
        let (a, a_shape) = match values[0].of(&parts[0], Factor::EmbeddingA) {
            Some(a) => (a, [a.len() / rank, rank]),
            None => {
                let a = adapter.tensors.a(&adapter.modules, start);
                (a, [rank, a.len() / rank])
            }
        };
        start += parts.len();
        let name = gguf_name(parts);
        [(format!("{name}.lora_a"), a_shape, a.to_vec()), (format!("{name}.lora_b"), [b.len() / rank, rank], b)]
    })
}

/// The name of the weight that has these parts.
fn gguf_name(parts: &[LoraModule]) -> String {
    let first = &parts[0];
    let (layer, projection) = match first.place {
        Place::Embedding => return "token_embd.weight".to_owned(),
        Place::Head => return "output.weight".to_owned(),
        Place::Layer(layer, projection) => (layer, projection),
    };
    let name = match projection {
        Projection::Q if first.path != projection.module() => "attn_qkv",
        // Gate and up as one layer have the name of up.
        Projection::Gate if parts.len() > 1 => "ffn_up",
        other => PROJECTIONS.iter().find(|(_, own)| *own == other).map_or("", |(name, _)| name),
    };
    format!("blk.{layer}.{name}.weight")
}

fn keys(settings: &AdapterSettings, architecture: Architecture, alpha: f32) -> Vec<Vec<u8>> {
    let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).unwrap_or("adapter").to_owned();
    // A model of the hub's cache lies in a directory with the name of its commit.
    let base = HubModel::of_snapshot(&settings.model).map_or_else(|| name(&settings.model), |model| model.id);
    let keys = [
        ("general.architecture", Meta::text(architecture.name)),
        ("general.type", Meta::text("adapter")),
        ("adapter.type", Meta::text("lora")),
        ("adapter.lora.alpha", Meta::F32(alpha)),
        ("general.name", Meta::text(name(&settings.out))),
        ("general.base_model.count", Meta::U32(1)),
        ("general.base_model.0.name", Meta::text(base)),
    ];
    keys.iter().map(|(key, value)| value.record(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::config::LoraConfig;
    use crate::lora::targets::resolve;

    fn exported(model: &Path, adapter: &Path) -> (tempfile::TempDir, GgufFile) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.gguf");
        let settings = AdapterSettings {
            model: model.to_owned(),
            adapter: adapter.to_owned(),
            out: out.clone(),
            overwrite: false,
        };
        export(&settings).unwrap();
        let message = export(&settings).unwrap_err().to_string();
        assert!(message.contains("exists already") && std::fs::read_dir(dir.path()).unwrap().count() == 1, "{message}");
        let file = GgufFile::open(&out).unwrap();
        (dir, file)
    }

    fn bytes(file: &GgufFile, name: &str) -> Vec<u8> {
        let tensor = file.tensor(name).unwrap_or_else(|| panic!("{name} is missing"));
        let mut bytes = vec![0; tensor.bytes as usize];
        tensor.read(0, &mut bytes).unwrap();
        bytes
    }

    /// llama.cpp loads the reference; rows of B that are not in its order would change the logits by a fifth.
    #[test]
    fn an_adapter_of_queries_and_keys_is_what_llama_cpp_loads() {
        let shared = Path::new("../shared/reference/gguf");
        if !shared.is_dir() {
            eprintln!("skipped: {} is not there", shared.display());
            return;
        }
        let (_dir, ours) = exported(Path::new("../shared/models/stories260K"), &shared.join("qk"));
        let theirs = GgufFile::open(&shared.join("qk.gguf")).unwrap();
        assert_eq!(ours.tensors.len(), theirs.tensors.len());
        for tensor in &theirs.tensors {
            let own = ours.tensor(&tensor.name).unwrap();
            assert_eq!((&own.shape, own.kind), (&tensor.shape, tensor.kind), "{}", tensor.name);
            assert!(bytes(&ours, &tensor.name) == bytes(&theirs, &tensor.name), "{}", tensor.name);
        }
        for key in ["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"] {
            assert_eq!(ours.values.get(key), theirs.values.get(key), "{key}");
        }
    }

    #[test]
    fn the_base_has_its_name_on_the_hub() {
        let model = crate::lora::targets::tests::model();
        let architecture = architecture_for(model.family).unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (model, name) in [
            (format!("/cache/models--owner--name/snapshots/{commit}"), "owner/name"),
            (format!("/cache/models--owner--name/snapshots/{commit}/name-Q8_0.gguf"), "name-Q8_0"),
            ("models/mine".to_owned(), "mine"),
        ] {
            let (adapter, out) = (PathBuf::from("run"), PathBuf::from("run.gguf"));
            let settings = AdapterSettings { model: model.into(), adapter, out, overwrite: false };
            let wanted = Meta::text(name).record("general.base_model.0.name");
            assert!(keys(&settings, architecture, 1.0).contains(&wanted), "{name}");
        }
    }

    #[test]
    fn every_scale_is_exact_with_one_alpha() {
        let model = crate::lora::targets::tests::model();
        let of = |text: &str| {
            let config = LoraConfig::from_json(Path::new("adapter_config.json"), text).unwrap();
            resolve(&config, &model).unwrap()
        };
        let plain = of(r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}"#);
        assert_eq!(common_alpha(&plain), (12.0, 0));
        let stabilized = of(
            r#"{"peft_type": "LORA", "r": 16, "lora_alpha": 12, "use_rslora": true, "target_modules": ["q_proj", "v_proj"]}"#,
        );
        assert_eq!(common_alpha(&stabilized), (48.0, 0));
        let patterns = of(r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"],
            "use_rslora": true, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 3}}"#);
        let (alpha, folded) = common_alpha(&patterns);
        assert_eq!(folded, patterns.len() / 2);
        for module in &patterns {
            let scale = fold(module, alpha) * (alpha / module.rank as f32);
            assert!((scale / module.scale - 1.0).abs() < 1e-6, "{scale} for {module:?}");
        }
    }
}
