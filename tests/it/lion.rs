//! `--optim lion` in whole runs: it learns in less memory than AdamW, and goes on bit by bit from its checkpoints.

use crate::common::cli::{Shell, random_lines, train_on};

fn train(shell: &Shell, out: &str, options: &str) -> String {
    shell.write("data.jsonl", random_lines(12, 101, 1));
    shell.succeed(&format!("{} --data data.jsonl --out {out} {options}", train_on("odd_sizes")))
}

/// Planned bytes by category, of which the first event of a run tells.
fn optimizer_bytes(shell: &Shell, options: &str) -> u64 {
    let shown =
        shell.succeed(&format!("{} --data data.jsonl --out dry --dry-run --json {options}", train_on("odd_sizes")));
    let events = shown.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = events.filter_map(|event| event["categories"]["optimizer"].as_u64()).next();
    found.unwrap_or_else(|| panic!("no bytes of the optimizer in {shown}"))
}

#[test]
fn it_learns_with_half_of_the_moments() {
    for method in ["--method full --weight-decay 0.01", "--rank 64 --dropout 0.1"] {
        let shell = Shell::new();
        let lion = format!("{method} --steps 40 --schedule constant --lr 0.001 --optim lion");
        train(&shell, "run", &lion);
        train(&shell, "again", &lion.replace("lion", "lion_32bit"));
        let losses = shell.losses("run");
        assert_eq!(shell.losses("again"), losses, "{method}");
        assert!(losses[39] < 0.8 * losses[0], "{method}: {losses:?}");
        let [whole, half] =
            ["adamw", "lion"].map(|optim| optimizer_bytes(&shell, &format!("{method} --optim {optim}")));
        assert!(half > 0 && 2 * half == whole, "{method}: {half} of {whole}");
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_and_another_optimizer_is_refused() {
    for (method, trained) in [
        ("--method full", "model.safetensors"),
        ("--rank 4 --modules-to-save embed_tokens", "adapter_model.safetensors"),
    ] {
        let shell = Shell::new();
        let options = format!("{method} --optim lion --lr 0.0003 --steps 6 --save-every 3 --keep 9");
        train(&shell, "whole", &options);
        train(&shell, "parts", &options);
        std::fs::remove_file(shell.path(&format!("parts/{trained}"))).unwrap();
        shell.succeed("train --resume parts/checkpoints/step-3");
        for file in [trained, "checkpoints/step-6/optimizer.safetensors"] {
            let [a, b] = ["whole", "parts"].map(|run| shell.read(&format!("{run}/{file}")));
            assert!(a == b, "{method}: {file}");
        }
        shell.fail("train --resume whole --steps 9 --optim adamw", &["--optim lion", "--optim adamw"]);
        train(&shell, "adamw", &format!("{method} --steps 2 --save-every 1"));
        shell.fail("train --resume adamw --steps 4 --optim lion", &["--optim adamw", "--optim lion"]);
    }
}
