//! An adapter that loraine trained and saved, as PEFT sees it.
//!
//! `tests/fixtures/saved_adapter` holds one with what `tests/peft_load.py` said of it and PEFT's logits. To make it again, with a
//! Python that has peft: `LORAINE_PEFT_PYTHON=python cargo test --test it saved_adapter:: -- --ignored`.

use std::path::Path;
use std::process::Command;

use crate::common::*;
use loraine::lora::adapter_file::{self, LoadedAdapter};
use loraine::lora::config::LoraConfig;
use loraine::model::config::ModelConfig;
use loraine::network::base::BaseStorage;
use loraine::train::event::to_the_end;
use loraine::train::prepare::prepare;
use loraine::train::run::{Start, run};
use loraine::train::settings::{Method, RunSettings};

const IDS: [u32; 12] = [1, 17, 4, 80, 33, 2, 9, 64, 51, 12, 7, 40];

/// Logits of the fixture's base with the adapter of `dir`.
fn logits(dir: &Path) -> Vec<f32> {
    let model = fixture("llama_tied");
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let (modules, tensors) = adapter(dir, &config);
    let mut engine = open_engine(&model, BaseStorage::AsStored, &modules, &tensors, 32, 2);
    pollster::block_on(engine.logits(&whole_sequence(&IDS))).unwrap()
}

fn train(out: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    std::fs::write(&data, format!("{{\"input_ids\": {IDS:?}}}\n")).unwrap();
    let settings = RunSettings {
        model: fixture("llama_tied"),
        data: data.into(),
        out: out.to_owned(),
        method: Method::Lora,
        rank: 2,
        alpha: 4.0,
        lr: 1e-2,
        steps: Some(10),
        ..RunSettings::default()
    };
    let prepared = prepare(settings).unwrap();
    pollster::block_on(run(prepared, gpu(), &Start::default(), to_the_end, |_| {})).unwrap();
}

#[test]
fn peft_computes_our_logits_with_the_saved_adapter() {
    let dir = fixture("saved_adapter");
    let result = json(&dir.join("peft_load.json"));
    assert_eq!(result["passed"], true);
    assert_eq!((&result["missing"], &result["unexpected"]), (&serde_json::json!([]), &serde_json::json!([])));
    let recorded = json(&dir.join("logits.json"));
    let recorded: Vec<f32> =
        recorded["logits"].as_array().unwrap().iter().flat_map(numbers).map(|v| v as f32).collect();
    // PEFT found these within its bound; ours must still be these.
    assert_close("logits", &logits(&dir), &recorded, 1e-5);
}

#[test]
fn a_saved_adapter_has_pefts_names_shapes_and_metadata() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("run");
    train(&out);
    let read = |dir: &Path| {
        let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = metadata.tensors();
        let mut names: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.dtype, t.shape.len())).collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        (names, metadata.metadata().clone())
    };
    assert_eq!(read(&out), read(&fixture("llama_tied").join("adapter")), "against the adapter that PEFT saved");
    let keys = |dir: &Path| -> Vec<String> {
        json(&dir.join("adapter_config.json")).as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&out), keys(&fixture("llama_tied").join("adapter")));
}

#[test]
fn the_same_run_saves_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let runs = ["a", "b"].map(|name| dir.path().join(name));
    runs.iter().for_each(|out| train(out));
    for file in ["adapter_model.safetensors", "adapter_config.json", "README.md"] {
        let [a, b] = runs.each_ref().map(|out| std::fs::read(out.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
#[ignore = "writes the fixture; needs a Python with peft"]
fn record() {
    let python = std::env::var("LORAINE_PEFT_PYTHON").expect("LORAINE_PEFT_PYTHON");
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("run");
    train(&out);
    let config = ModelConfig::from_file(&fixture("llama_tied").join("config.json")).unwrap();
    let LoadedAdapter { config: lora, modules, tensors } = adapter_file::load(&out, &config).unwrap();
    let dir = fixture("saved_adapter");
    let base_model_name_or_path = Some("llama_tied".to_owned());
    let lora = LoraConfig { base_model_name_or_path, ..lora };
    adapter_file::save(&dir, &lora, &modules, &tensors).unwrap();
    let values = logits(&dir);
    let rows: Vec<&[f32]> = values.chunks(config.vocab_size).collect();
    let text = serde_json::json!({ "input_ids": IDS, "logits": rows }).to_string();
    std::fs::write(dir.join("logits.json"), text).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft_load.py");
    let result = Command::new(python)
        .args([script, fixture("llama_tied"), dir.clone(), dir.join("logits.json")])
        .output()
        .expect("the script runs");
    std::fs::write(dir.join("peft_load.json"), &result.stdout).unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    println!("{}", String::from_utf8_lossy(&result.stdout));
}
