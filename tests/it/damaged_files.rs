//! Hundreds of small damages to the files that are read: each is either harmless or one line that names the file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::attacks::{self, Weights};
use crate::common::cli::{copy_files, random_lines};
use crate::common::fixture;
use loraine::Result;
use loraine::data::read;
use loraine::data::tokenizer::Tokenizer;
use loraine::gpu::Capabilities;
use loraine::lora::adapter_file;
use loraine::lora::targets;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::quant::format::Code4;
use loraine::random::{Stream, bits};
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use loraine::train::settings::RunSettings;

const DAMAGES: u64 = 300;

/// One damage of a file, `seed` saying which: a byte changed, removed, doubled or made a brace, digits made others, the
/// rest cut off, or two places exchanged. Only the first `within` bytes change.
pub fn damaged(good: &[u8], within: usize, seed: u64) -> Vec<u8> {
    let draw = |index: u64| bits(seed, Stream::Sampling, 9, index);
    let at = draw(0) as usize % within;
    let mut bytes = good.to_vec();
    match draw(1) % 8 {
        0 => bytes[at] = draw(2) as u8,
        1 => bytes[at] ^= 1 << (draw(2) % 8),
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, bytes[at]),
        4 => bytes[at] = b"{}[],:\"0-9e.\\\0\n"[draw(2) as usize % 15],
        5 => {
            // Numbers are where sizes come from: one of them gets another first digit, or many more digits.
            let Some(digit) = (at..within).chain(0..at).find(|i| bytes[*i].is_ascii_digit()) else { return bytes };
            match draw(2) % 3 {
                0 => bytes[digit] = b'0' + (draw(3) % 10) as u8,
                1 => bytes.splice(digit..digit, *b"99999999").for_each(drop),
                _ => bytes.insert(digit, b'-'),
            }
        }
        6 => bytes.truncate(at),
        _ => bytes.swap(at, draw(2) as usize % within),
    }
    bytes
}

/// Damages the file at `path` in many ways, with `read` after each; how many reads failed.
fn damage(path: &Path, within: usize, read: &dyn Fn() -> Result<()>) -> usize {
    let good = std::fs::read(path).unwrap();
    read().expect("the good file");
    let mut refused = 0;
    for seed in 0..DAMAGES {
        let bytes = damaged(&good, within.min(good.len()), seed);
        std::fs::write(path, &bytes).unwrap();
        let shown = || format!("{}, damage {seed}: {}", path.display(), String::from_utf8_lossy(&bytes));
        let outcome = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| panic!("panic with {}", shown()));
        if let Err(e) = outcome {
            refused += 1;
            let message = e.to_string();
            // Records that cannot be used are listed, one a line.
            let listed = message.lines().skip(1).all(|line| line.starts_with("  "));
            assert!(!message.is_empty() && listed, "{message:?} with {}", shown());
            assert!(message.len() < 2000, "{message} with {}", shown());
            assert!(message.contains(path.parent().unwrap().to_str().unwrap()), "{message} names no file; {}", shown());
        }
    }
    std::fs::write(path, good).unwrap();
    refused
}

/// Reads a model as a run does, up to the memory plan.
fn open_model(dir: &Path) -> Result<()> {
    let source = Source::open(dir)?;
    let config = &source.config;
    let modules = targets::resolve(&RunSettings::default().lora_config(), config)?;
    let stored = |name: &str| source.stored(name);
    let settings = PlanSettings {
        base: BaseStorage::Quantized(Code4::Nf4.storage(true)),
        max_rows: 64,
        max_positions: 32,
        recompute: RecomputePolicy::Keep(1),
        dropout: 0.1,
        loraplus: false,
        neftune_alpha: 0.0,
        training: Some(MomentStorage::F32),
        distillation: None,
        shard: Shard::default(),
    };
    assert!(TrainPlan::new(Capabilities::BASELINE, config, stored, &modules, &settings).ledger().total() > 0);
    Ok(())
}

#[test]
fn headers_of_weights() {
    for (model, file) in [("llama_tied", "model.safetensors"), ("llama_untied", "model-00001-of-00002.safetensors")] {
        let dir = tempfile::tempdir().unwrap();
        copy_files(&fixture(model), dir.path());
        let path = dir.path().join(file);
        let weights = Weights::read(&path);
        let header = std::fs::read(&path).unwrap().len() - weights.data.len();
        let refused = damage(&path, header, &|| open_model(dir.path()));
        assert!(refused > DAMAGES as usize / 2, "only {refused} refused");
    }
}

#[test]
fn model_configurations_and_indices() {
    for (model, file) in [
        ("llama_tied", "config.json"),
        ("llama3_rope", "config.json"),
        ("yarn_rope", "config.json"),
        ("mistral_window", "config.json"),
        ("qwen3", "config.json"),
        ("llama_untied", "model.safetensors.index.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy_files(&fixture(model), dir.path());
        let refused = damage(&dir.path().join(file), usize::MAX, &|| open_model(dir.path()));
        assert!(refused > DAMAGES as usize / 5, "{model}: only {refused} refused");
    }
}

#[test]
fn adapters() {
    let model = ModelConfig::from_file(&fixture("llama_tied/config.json")).unwrap();
    for adapter in ["adapter", "adapter_regex", "adapter_rank_pattern", "adapter_layers"] {
        let dir = tempfile::tempdir().unwrap();
        copy_files(&fixture("llama_tied").join(adapter), dir.path());
        let load = || adapter_file::load(dir.path(), &model).map(|_| ());
        let weights = dir.path().join("adapter_model.safetensors");
        let header = std::fs::read(&weights).unwrap().len() - Weights::read(&weights).data.len();
        for (file, within) in [("adapter_config.json", usize::MAX), ("adapter_model.safetensors", header)] {
            let refused = damage(&dir.path().join(file), within, &load);
            assert!(refused > DAMAGES as usize / 20, "{adapter}/{file}: only {refused} refused");
        }
    }
}

#[test]
fn data_and_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ModelConfig::from_file(&fixture("llama_tied/config.json")).unwrap();
    config.vocab_size = 12;
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", &attacks::tokenizer(12));
    write("tokenizer_config.json", r#"{"bos_token": {"content": "w0"}, "eos_token": "w1"}"#);
    let lines = "{\"text\": \"w3 w4\"}\n{\"prompt\": \"w5\", \"completion\": \"w6 w7\"}\n";
    write(
        "data.jsonl",
        &(lines.to_owned() + &random_lines(2, 12, 1) + r#"{"input_ids": [1, 2], "labels": [-100, 2]}"#),
    );
    let read = || {
        let tokenizer = Tokenizer::from_dir(dir.path(), &config)?;
        read::read(&dir.path().join("data.jsonl"), Some(&tokenizer), 64, config.vocab_size).map(|_| ())
    };
    for file in ["data.jsonl", "tokenizer.json", "tokenizer_config.json"] {
        let refused = damage(&dir.path().join(file), usize::MAX, &read);
        assert!(refused > DAMAGES as usize / 5, "{file}: only {refused} refused");
    }
}

#[test]
fn settings() {
    let good = toml::to_string(&RunSettings { steps: Some(7), ..RunSettings::default() }).unwrap();
    let mut refused = 0;
    for seed in 0..DAMAGES {
        let bytes = damaged(good.as_bytes(), good.len(), seed);
        let Ok(table) = toml::from_str(&String::from_utf8_lossy(&bytes)) else { continue };
        let outcome = RunSettings::from_table(table).and_then(|settings| settings.check());
        if let Err(e) = outcome {
            refused += 1;
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }
    assert!(refused > DAMAGES as usize / 10, "only {refused} refused");
}
