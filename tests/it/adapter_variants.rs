//! Variants of adapters and of their training: they repeat and resume to the bit, and change what they say.

use crate::common::cli::{Shell, copy_files, random_lines, train_on};

/// A run of each of `options`, again, and from its middle.
fn assert_repeats(model: &str, options: &str) {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(7, 96, 1));
    let command = format!(
        "{} --data data.jsonl --steps 4 --lr 0.01 --rank 4 --batch-size 2 --grad-accum 2 --save-every 2 --keep 9 {options}",
        train_on(model)
    );
    for out in ["whole", "again"] {
        shell.succeed(&format!("{command} --out {out}"));
    }
    shell.assert_same_adapter(options, ["whole", "again"]);
    copy_files(&shell.path("whole"), &shell.path("cut"));
    copy_files(&shell.path("whole/checkpoints/step-2"), &shell.path("cut/checkpoints/step-2"));
    let shown = shell.succeed(&format!("{command} --out cut --resume"));
    assert!(shown.contains("resumed after step 2 "), "{shown}");
    shell.assert_same_adapter(options, ["whole", "cut"]);
    assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics("cut"), "{options}");
}

#[test]
fn noise_and_a_raised_learning_rate_repeat_and_resume() {
    assert_repeats("llama_tied", "--neftune-noise-alpha 5 --loraplus-lr-ratio 4 --optim adamw8bit");
}

#[test]
fn lora_plus_raises_the_learning_rate_of_b_alone() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    for (out, options) in [("plain", ""), ("raised", "--loraplus-lr-ratio 16"), ("one", "--loraplus-lr-ratio 1")] {
        let steps = "--steps 1 --lr 0.001 --schedule constant --max-grad-norm 0 --batch-size 4";
        shell.succeed(&format!("{} --data data.jsonl --out {out} {steps} {options}", train_on("llama_tied")));
    }
    shell.assert_same_adapter("ratio 1", ["plain", "one"]);
    let (plain, raised) = (shell.adapter("plain"), shell.adapter("raised"));
    for name in plain.names() {
        let factor = if name.contains("lora_B") { 16.0 } else { 1.0 };
        for (a, b) in plain.get(name).iter().zip(raised.get(name)) {
            assert!((factor * a - b).abs() <= 1e-6 * b.abs(), "{name}: {a} {b}");
        }
    }
}

#[test]
fn noise_is_for_training_steps_alone() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    for (out, options) in [("plain", ""), ("noisy", "--neftune-noise-alpha 5"), ("off", "--neftune-noise-alpha 0")] {
        let steps = "--steps 2 --lr 1e-9 --eval-data data.jsonl --batch-size 4";
        shell.succeed(&format!("{} --data data.jsonl --out {out} {steps} {options}", train_on("llama_tied")));
    }
    shell.assert_same_adapter("no noise", ["plain", "off"]);
    let evaluation = |run: &str| shell.metrics(run).iter().find_map(|line| line.get("eval_loss")?.as_f64());
    assert_eq!(evaluation("plain"), evaluation("noisy"));
    let [plain, noisy] = ["plain", "noisy"].map(|run| shell.losses(run)[0]);
    assert!((plain - noisy).abs() > 1e-4 && (plain - noisy).abs() < 1.0, "{plain} {noisy}");
}

#[test]
fn settings_without_a_use_are_refused() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    let train = format!("{} --data data.jsonl --out out", train_on("llama_tied"));
    shell.fail(&format!("{train} --loraplus-lr-ratio 0"), &["--loraplus-lr-ratio", "positive"]);
    shell.fail(&format!("{train} --method full --loraplus-lr-ratio 2"), &["--loraplus-lr-ratio", "adapter"]);
    shell.fail(&format!("{train} --neftune-noise-alpha -1"), &["--neftune-noise-alpha"]);
}
