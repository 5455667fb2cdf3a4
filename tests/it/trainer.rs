//! 30 steps against transformers' Trainer and TRL's SFTTrainer (`fixtures/trainer.py`), with the real tokenizers of `../shared` and
//! tiny models whose weights follow from a formula.

use std::path::Path;

use loraine::model::config::ModelConfig;
use loraine::model::tensors::tensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::common::cli::Shell;
use crate::common::{fixture, shared};

/// Numbers from -0.5 to 0.5: a hash of the place of the tensor and of the element.
pub fn values(place: usize, count: usize) -> impl Iterator<Item = f64> {
    (0..count as u64).map(move |at| {
        let mut x = (at * 2_654_435_761 + place as u64 * 40503 + 12345) & 0xffff_ffff;
        x = ((x ^ (x >> 15)) * 2_246_822_519) & 0xffff_ffff;
        x = ((x ^ (x >> 13)) * 3_266_489_917) & 0xffff_ffff;
        x ^= x >> 16;
        x as f64 / 4_294_967_296.0 - 0.5
    })
}

pub fn write_model(dir: &Path, config: &Value, tokenizer: &Path) {
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for file in std::fs::read_dir(tokenizer).unwrap().flatten() {
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    let mut specs = tensors(&ModelConfig::from_dir(dir).unwrap());
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = |(place, spec): (usize, &loraine::model::tensors::TensorSpec)| -> Vec<u8> {
        let norm = spec.name.contains("norm");
        let number = |value: f64| if norm { 1.0 + 0.2 * value } else { 0.4 * value };
        values(place, spec.elements()).flat_map(|value| (number(value) as f32).to_le_bytes()).collect()
    };
    let data: Vec<_> = specs.iter().enumerate().map(bytes).collect();
    let views = specs
        .iter()
        .zip(&data)
        .map(|(spec, bytes)| (spec.name.clone(), TensorView::new(Dtype::F32, spec.shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

#[test]
fn thirty_steps_have_the_losses_of_transformers_and_trl() {
    if shared("tokenizers").is_none() {
        return;
    }
    let text = std::fs::read_to_string(fixture("trainer.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let settings = &recorded["settings"];
    let lines = |list: &Value, record: fn(&Value) -> Value| -> String {
        list.as_array().unwrap().iter().map(|item| format!("{}\n", record(item))).collect()
    };
    let mut worst: f64 = 0.0;
    for case in recorded["cases"].as_array().unwrap() {
        let (kind, name) = (case["kind"].as_str().unwrap(), case["tokenizer"].as_str().unwrap());
        let shell = Shell::new();
        write_model(&shell.path("model"), &recorded["configs"][name], &shared(&format!("tokenizers/{name}")).unwrap());
        let data = match kind {
            "trainer" => lines(&case["rows"], Value::clone),
            "assistant" => lines(&recorded["chats"], |messages| json!({ "messages": messages })),
            _ => lines(&recorded["pairs"], Value::clone),
        };
        shell.write("data.jsonl", data);
        let template = match kind {
            "assistant" => format!("--chat-template {}", fixture(case["template"].as_str().unwrap()).display()),
            _ => String::new(),
        };
        if let Some(tokens) = case.get("tokens") {
            let shown = shell.succeed(&format!("inspect --model model --data data.jsonl -n 1000 --json {template}"));
            let shown: Value = serde_json::from_str(&shown).unwrap();
            let count = |example: &Value| {
                let tokens = example["tokens"].as_array().unwrap();
                let trained = tokens.iter().skip(1).filter(|token| token["trained"] == true).count();
                json!([tokens.len(), trained])
            };
            let counts: Vec<_> = shown["examples"].as_array().unwrap().iter().map(count).collect();
            assert_eq!(Value::from(counts), *tokens, "{kind}, {name}");
        }
        shell.succeed(&format!(
            "train --model model --method full --data data.jsonl --out run --no-shuffle --steps {} --batch-size {} --lr {} \
             --weight-decay {} {template}",
            settings["steps"], settings["batch"], settings["lr"], settings["weight_decay"]
        ));
        let losses = shell.losses("run");
        let expected = case["losses"].as_array().unwrap();
        assert_eq!(losses.len(), expected.len());
        for (step, (loss, expected)) in losses.iter().zip(expected).enumerate() {
            let off = (loss / expected.as_f64().unwrap() - 1.0).abs();
            assert!(off < 1e-5, "{kind}, {name}, step {}: {loss} instead of {expected}", step + 1);
            worst = worst.max(off);
        }
    }
    println!("the losses are within {worst:.1e} of the trainers'");
}
