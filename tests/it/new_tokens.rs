//! `--add-tokens`: tokens that a run adds to the vocabulary, their trained rows, and the files that carry them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::cli::{Shell, assert_fails};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/model");
const TRAIN: &str = "--data data.jsonl --eval-data data.jsonl --steps 4 --lr 0.02 --rank 2 --batch-size 2 --max-seq-len 64 --method lora";

/// A shell with data that hold two new tokens.
fn shell() -> Shell {
    let shell = Shell::new();
    let record = |i: usize| {
        let record =
            json!({"prompt": format!("<ask>What is {i}?<answer>"), "completion": format!(" A number, {i}<ask>.")});
        record.to_string() + "\n"
    };
    shell.write("data.jsonl", (0..6).map(record).collect::<String>());
    shell
}

fn json_of(shell: &Shell, file: &str) -> Value {
    serde_json::from_slice(&shell.read(file)).unwrap()
}

fn loss(shell: &Shell, of: &str) -> f64 {
    let shown = shell.succeed(&format!("eval {of} --data data.jsonl --max-seq-len 64 --json"));
    serde_json::from_str::<Value>(&shown).unwrap()["loss"].as_f64().unwrap()
}

fn last_evaluation(shell: &Shell, run: &str) -> f64 {
    let lines = shell.metrics(run);
    lines.iter().rev().find_map(|line| line.get("eval_loss")?.as_f64()).expect("an evaluation")
}

/// A copy of the demo model with a head of its own.
fn untied(shell: &Shell) -> String {
    shell.succeed(&format!("train --model {MODEL} {TRAIN} --modules-to-save lm_head --out head"));
    shell.succeed(&format!("merge --model {MODEL} --adapter head --out untied --dtype f32"));
    assert_eq!(json_of(shell, "untied/config.json")["tie_word_embeddings"], false);
    "untied".to_owned()
}

#[test]
fn new_tokens_are_trained_saved_used_and_merged() {
    let shell = shell();
    for (model, name) in [(MODEL.to_owned(), "tied"), (untied(&shell), "own-head")] {
        shell.succeed(&format!(
            "train --model {model} {TRAIN} --add-tokens <answer> --add-special-tokens <ask> --out {name}"
        ));
        let expected = match name {
            "tied" => json!({"embed_tokens": [768, 769]}),
            _ => json!({"embed_tokens": [768, 769], "lm_head": [768, 769]}),
        };
        assert_eq!(json_of(&shell, &format!("{name}/adapter_config.json"))["trainable_token_indices"], expected);
        let tokenizer = json_of(&shell, &format!("{name}/tokenizer.json"));
        let added = tokenizer["added_tokens"].as_array().unwrap();
        let of = |at: usize| (&added[at]["id"], &added[at]["content"], &added[at]["special"]);
        assert_eq!(of(4), (&json!(768), &json!("<answer>"), &json!(false)));
        assert_eq!(of(5), (&json!(769), &json!("<ask>"), &json!(true)));
        let rows = shell.adapter(name);
        let rows = rows.get("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta");
        assert!(
            rows.len() == 2 * 128 && rows[..128] != rows[128..],
            "both rows begin at one value and are trained apart"
        );

        let trained = last_evaluation(&shell, name);
        let apart = loss(&shell, &format!("--model {model} --adapter {name}"));
        assert!((apart / trained - 1.0).abs() < 1e-5, "{name}: {apart} instead of {trained}");
        shell.succeed(&format!("merge --model {model} --adapter {name} --out merged-{name} --dtype f32"));
        assert_eq!(json_of(&shell, &format!("merged-{name}/config.json"))["vocab_size"], 770);
        let merged = loss(&shell, &format!("--model merged-{name}"));
        assert!((merged / trained - 1.0).abs() < 1e-5, "{name}: {merged} instead of {trained}");
        let shown = shell.succeed(&format!(
            "generate --model {model} --adapter {name} --raw --prompt <ask>What --json --max-tokens 2"
        ));
        let answer: Value = serde_json::from_str(&shown).unwrap();
        assert!(answer["answers"][0]["prompt_ids"].as_array().unwrap().contains(&json!(769)), "{answer}");
    }
}

#[test]
fn rows_of_new_tokens_begin_at_the_mean_and_runs_with_them_resume_to_the_bit() {
    let shell = shell();
    let train = format!("train --model {MODEL} {TRAIN} --add-tokens <ask> <answer>");
    shell.succeed(&format!("{train} --save-every 2 --out whole"));
    shell.succeed(&format!("{train} --save-every 2 --out resumed"));
    fs::remove_dir_all(shell.path("resumed/checkpoints/step-4")).unwrap();
    shell.succeed("train --resume resumed");
    for file in ["adapter_model.safetensors", "tokenizer.json"] {
        assert!(shell.read(&format!("whole/{file}")) == shell.read(&format!("resumed/{file}")), "{file}");
    }
    // A learning rate at which no f32 moves.
    shell.succeed(&format!("{train} --lr 1e-30 --out still").replace("--lr 0.02 ", ""));
    let still = shell.adapter("still");
    let rows = still.get("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta");
    let bytes = fs::read(Path::new(MODEL).join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stored = tensors.tensor("model.embed_tokens.weight").unwrap();
    let value = |at: usize| {
        f32::from_bits(u32::from(u16::from_le_bytes([stored.data()[2 * at], stored.data()[2 * at + 1]])) << 16)
    };
    for col in 0..128 {
        let mean = (0..768).map(|row| f64::from(value(row * 128 + col))).sum::<f64>() / 768.0;
        for row in 0..2 {
            let got = f64::from(rows[row * 128 + col]);
            assert!((got - mean).abs() < 1e-6, "row {row}, column {col}: {got} instead of {mean}");
        }
    }
}

#[test]
fn tokens_that_cannot_be_added_are_named() {
    let shell = shell();
    let train = format!("train --model {MODEL} {TRAIN} --out run");
    for (flags, says) in [
        (
            "--add-tokens <|user|>",
            &["--add-tokens has \"<|user|>\"", "is a token of this model already, 2", "--trainable-token-indices"][..],
        ),
        ("--add-tokens <x> --add-special-tokens <x>", &["--add-special-tokens has \"<x>\"", "given once"]),
        ("--add-tokens <x> --modules-to-save embed_tokens", &["--modules-to-save a whole copy", "choose one"]),
    ] {
        assert_fails(&mut shell.command(&format!("{train} {flags}")), flags, says);
    }
    let full = format!("{train} --add-tokens <x>").replace("--method lora", "--method full").replace("--rank 2 ", "");
    let output = shell.command(&full).output().unwrap();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && problem.contains("--add-tokens"), "{problem}");
}
