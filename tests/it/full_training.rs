//! `loraine train --method full` at the terminal: directories that load again, runs that resume, starts from scratch.

use crate::common::cli::{Shell, random_lines, train_on};
use crate::common::*;

fn train(shell: &Shell, model: &str, out: &str, options: &str) -> String {
    shell.write("data.jsonl", random_lines(12, 96, 1));
    shell.write("held_out.jsonl", random_lines(4, 96, 2));
    shell.succeed(&format!(
        "{} --method full --data data.jsonl --eval-data held_out.jsonl --lr 0.003 --weight-decay 0.01 --out {out} {options}",
        train_on(model)
    ))
}

fn eval_loss(shell: &Shell, model: &str) -> f64 {
    let printed = shell.succeed(&format!("eval --model {model} --data held_out.jsonl --json"));
    serde_json::from_str::<serde_json::Value>(&printed).unwrap()["loss"].as_f64().unwrap()
}

fn last_eval(shell: &Shell, run: &str) -> f64 {
    let lines = shell.metrics(run);
    lines.iter().rev().find_map(|line| line.get("eval_loss")?.as_f64()).expect("an evaluation")
}

#[test]
fn what_is_saved_is_the_model_that_was_trained() {
    // Tied and untied, biases, head norms, bf16 files and sharded ones.
    for model in ["llama_tied", "llama_untied", "qwen2", "qwen3", "lfm2", "qwen3_5"] {
        let shell = Shell::new();
        train(&shell, model, "run", "--steps 6 --dtype f32");
        let (trained, saved) = (last_eval(&shell, "run"), eval_loss(&shell, "run"));
        assert!((saved / trained - 1.0).abs() < 1e-5, "{model}: {saved} instead of {trained}");
        let before = shell.metrics("run")[0]["eval_loss"].as_f64().unwrap();
        assert!(trained < before, "{model}: {before} {trained}");
        train(&shell, model, "rounded", "--steps 6 --dtype bf16");
        let rounded = eval_loss(&shell, "rounded");
        assert!(rounded != saved && (rounded / saved - 1.0).abs() < 1e-2, "{model}: {rounded} and {saved}");
    }
}

#[test]
fn the_saved_model_keeps_the_type_and_the_names_of_the_base() {
    let shell = Shell::new();
    train(&shell, "mistral_window", "run", "--steps 1");
    let config: serde_json::Value = serde_json::from_slice(&shell.read("run/config.json")).unwrap();
    assert_eq!(config["torch_dtype"].as_str().or(config["dtype"].as_str()), Some("bfloat16"));
    let names = |bytes: &[u8]| -> Vec<String> {
        let mut names: Vec<String> = safetensors::SafeTensors::deserialize(bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| format!("{name} {:?} {:?}", view.dtype(), view.shape()))
            .collect();
        names.sort();
        names
    };
    let base = std::fs::read(fixture("mistral_window/model.safetensors")).unwrap();
    assert_eq!(names(&shell.read("run/model.safetensors")), names(&base));
    shell.succeed("train --model run --data data.jsonl --out adapter --steps 1");
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let shell = Shell::new();
    train(&shell, "qwen3", "whole", "--steps 8 --save-every 3");
    train(&shell, "qwen3", "parts", "--steps 8 --save-every 3");
    for file in ["model.safetensors", "config.json", "loss.svg", "checkpoints/step-6/optimizer.safetensors"] {
        assert_eq!(shell.read(&format!("whole/{file}")), shell.read(&format!("parts/{file}")), "{file}");
    }
    std::fs::remove_file(shell.path("parts/model.safetensors")).unwrap();
    shell.succeed("train --config parts/run.toml --resume");
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("parts"));
    assert_eq!(shell.read("whole/model.safetensors"), shell.read("parts/model.safetensors"));
}

#[test]
fn recomputed_activations_and_accumulated_batches_change_nothing() {
    let shell = Shell::new();
    let losses = |out: &str, options: &str| {
        train(&shell, "odd_sizes", out, &format!("--steps 6 {options}"));
        shell.losses(out)
    };
    let kept = losses("kept", "--recompute none");
    for (out, options) in [("again", "--recompute all"), ("ones", "--batch-size 1 --grad-accum 4")] {
        let other = losses(out, options);
        assert_eq!(other.len(), kept.len());
        for (kept, other) in kept.iter().zip(&other) {
            assert!((kept / other - 1.0).abs() < 1e-5, "{options}: {other} instead of {kept}");
        }
    }
}

#[test]
fn a_model_is_trained_from_its_shape_alone() {
    let shell = Shell::new();
    std::fs::create_dir(shell.path("shape")).unwrap();
    std::fs::copy(fixture("llama_tied/config.json"), shell.path("shape/config.json")).unwrap();
    shell.write("data.jsonl", random_lines(3, 96, 1));
    let run = |out: &str, seed: usize| {
        shell.succeed(&format!(
            "train --model shape --method full --from-scratch --data data.jsonl --out {out} --steps 40 --lr 0.01 \
             --seed {seed} --schedule constant"
        ));
        shell.losses(out)
    };
    let losses = run("new", 1);
    // Near the logarithm of the vocabulary at first; three sequences are soon known by heart.
    assert!((losses[0] - 96f64.ln()).abs() < 0.2 && losses[39] < 1.5, "{losses:?}");
    assert_eq!(losses, run("again", 1));
    assert_ne!(losses[0], run("other", 2)[0]);
}

#[test]
fn settings_that_do_not_belong_are_named() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(3, 96, 1));
    let command = format!("{} --data data.jsonl --out run", train_on("llama_tied"));
    for flag in [
        "--rank 4",
        "--alpha 8",
        "--dropout 0.1",
        "--target-modules q_proj",
        "--rslora",
        "--quant nf4",
        "--no-double-quant",
    ] {
        let name = flag.split(' ').next().unwrap();
        shell.fail(&format!("{command} --method full {flag}"), &[name, "--method full trains the model itself"]);
    }
    shell.fail(&format!("{command} --from-scratch"), &["--from-scratch is for --method full"]);
    shell.fail(&format!("{command} --dtype bf16"), &["--dtype is for --method full"]);
    assert_eq!(shell.names("run"), [""; 0]);
}
