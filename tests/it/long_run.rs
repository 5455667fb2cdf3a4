//! 300 steps on a real trained model and a real text: what is learned, not only that the numbers agree.
//! PEFT reaches a held-out loss of 2.888 (LoRA) and 2.905 (QLoRA) from 4.82 with these settings, PyTorch 2.636 with every weight.

use crate::common::{self, shared};
use loraine::data::tokenizer::Tokenizer;
use loraine::model::config::ModelConfig;
use loraine::random::{Stream, bits};
use loraine::train::event::to_the_end;
use loraine::train::prepare::prepare;
use loraine::train::run::{Start, run};
use loraine::train::settings::{Method, RunSettings};

const LENGTH: usize = 128;
const BATCH: usize = 8;
const STEPS: usize = 300;

fn line(ids: &[u32]) -> String {
    format!("{}\n", serde_json::json!({ "input_ids": ids }))
}

/// The held-out loss before and after, on the last tenth of the text; windows of the rest are drawn at random.
fn held_out_losses(method: Method) -> Option<(f64, f64)> {
    let model = shared("models/stories260K")?;
    let text = std::fs::read_to_string(shared("datasets/tinyshakespeare/input.txt")?).unwrap();
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let ids = Tokenizer::from_dir(&model, &config).unwrap().encode(&text, false).unwrap();
    let (training, held_out) = ids.split_at(ids.len() * 9 / 10);
    let dir = tempfile::tempdir().unwrap();
    let window = |i: u64| {
        let start = bits(7, Stream::Sampling, 0, i) as usize % (training.len() - LENGTH);
        line(&training[start..start + LENGTH])
    };
    let data = dir.path().join("train.jsonl");
    std::fs::write(&data, (0..(STEPS * BATCH) as u64).map(window).collect::<String>()).unwrap();
    let eval = dir.path().join("held_out.jsonl");
    std::fs::write(&eval, held_out.chunks(LENGTH).take(32).map(line).collect::<String>()).unwrap();
    let settings = RunSettings {
        model,
        data: data.into(),
        out: dir.path().join("run"),
        method,
        rank: 8,
        alpha: 16.0,
        batch_size: BATCH,
        steps: Some(STEPS),
        lr: 2e-3,
        warmup_steps: 10,
        weight_decay: 0.01,
        shuffle: false,
        eval_data: Some(eval),
        ..RunSettings::default()
    };
    let prepared = prepare(settings).unwrap();
    let outcome = pollster::block_on(run(prepared, common::gpu(), &Start::default(), to_the_end, |_| {})).unwrap();
    Some((outcome.first_eval.unwrap().eval_loss, outcome.last_eval.unwrap().eval_loss))
}

#[test]
fn lora_learns_as_peft_does() {
    if let Some((before, after)) = held_out_losses(Method::Lora) {
        println!("LoRA: held-out loss {before:.4} before, {after:.4} after");
        assert!(before > 4.7 && after <= 2.92, "{before} {after}");
    }
}

#[test]
fn qlora_learns_as_peft_does() {
    if let Some((before, after)) = held_out_losses(Method::Qlora) {
        println!("QLoRA: held-out loss {before:.4} before, {after:.4} after");
        assert!(before > 4.7 && after <= 2.94, "{before} {after}");
    }
}

#[test]
fn full_training_learns_as_pytorch_does() {
    if let Some((before, after)) = held_out_losses(Method::Full) {
        println!("full: held-out loss {before:.4} before, {after:.4} after");
        assert!(before > 4.7 && after <= 2.66, "{before} {after}");
    }
}
