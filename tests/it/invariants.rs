//! What must not change a run: how its batches are cut, what is recomputed, when it is watched or interrupted.

use crate::common::cli::{Shell, random_lines, token_lines, train_on};
use crate::common::*;

fn assert_losses_near(what: &str, got: &[f64], want: &[f64], bound: f64) {
    assert!(!want.is_empty() && got.len() == want.len(), "{what}: {got:?} {want:?}");
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got / want - 1.0).abs() < bound, "{what}: loss {got} of step {} instead of {want}", step + 1);
    }
}

fn assert_adapter_near(what: &str, got: &Reference, want: &Reference, bound: f64) {
    let names: Vec<_> = want.names().collect();
    assert!(!names.is_empty() && names.len() == got.names().count(), "{what}");
    for name in names {
        assert_close(&format!("{what}: {name}"), got.get(name), want.get(name), bound);
    }
}

#[test]
fn a_batch_of_four_is_four_accumulated_sequences() {
    for (model, vocabulary) in [("llama_tied", 96), ("mistral_window", 96), ("odd_sizes", 101)] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(12, vocabulary, 1));
        let run = |out: &str, batch: &str| {
            shell.succeed(&format!(
                "{} --data data.jsonl --out {out} --steps 8 --rank 4 --lr 0.002 --seed 5 {batch}",
                train_on(model)
            ));
        };
        run("whole", "--batch-size 4");
        for (out, batch) in [("ones", "--batch-size 1 --grad-accum 4"), ("twos", "--batch-size 2 --grad-accum 2")] {
            run(out, batch);
            let what = format!("{model} {batch}");
            assert_losses_near(&what, &shell.losses(out), &shell.losses("whole"), 1e-5);
            assert_adapter_near(&what, &shell.adapter(out), &shell.adapter("whole"), 1e-4);
        }
    }
}

#[test]
fn sequences_in_one_stream_do_not_see_each_other() {
    let shell = Shell::new();
    let ids: Vec<Vec<u32>> = [13, 5, 21, 8].iter().map(|n| (0..*n).map(|i| (i * 37 + n * 11) % 96).collect()).collect();
    shell.write("all.jsonl", token_lines(ids.iter().map(Vec::as_slice)));
    let adapter = fixture("mistral_window/adapter");
    let model = fixture("mistral_window");
    let eval = |data: &str, batch: usize| -> (f64, f64) {
        let command = format!("eval --model {} --adapter {} --json", model.display(), adapter.display());
        let printed = shell.succeed(&format!("{command} --data {data} --batch-size {batch}"));
        let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let number = |key: &str| result[key].as_f64().unwrap();
        (number("loss") * number("tokens"), number("tokens"))
    };
    let (mut sum, mut tokens) = (0.0, 0.0);
    for (i, ids) in ids.iter().enumerate() {
        let name = format!("one{i}.jsonl");
        shell.write(&name, token_lines([ids.as_slice()]));
        let (own, count) = eval(&name, 1);
        (sum, tokens) = (sum + own, tokens + count);
    }
    for batch in [1, 2, 4] {
        let (together, count) = eval("all.jsonl", batch);
        assert_eq!(count, tokens);
        assert!((together / sum - 1.0).abs() < 1e-6, "batches of {batch}: {together} instead of {sum}");
    }
}

#[test]
fn packed_examples_train_as_separate_ones() {
    for model in ["llama_tied", "mistral_window"] {
        let shell = Shell::new();
        let lines = random_lines(4, 96, 1);
        shell.write("data.jsonl", &lines);
        let run = |out: &str, batch: &str| {
            let options = "--steps 6 --rank 4 --lr 0.002 --eval-data data.jsonl";
            shell.succeed(&format!("{} --data data.jsonl --out {out} {options} {batch}", train_on(model)))
        };
        run("separate", "--batch-size 4");
        let shown = run("packed", "--batch-size 1 --packing --max-seq-len 80");
        assert!(shown.contains("packed into 1 slot\n"), "{shown}");
        assert_losses_near(model, &shell.losses("packed"), &shell.losses("separate"), 1e-5);
        assert_adapter_near(model, &shell.adapter("packed"), &shell.adapter("separate"), 1e-4);
        // Several slots hold every example once: one step over all of them has the loss of all of them.
        run("slots", "--batch-size 4 --packing --max-seq-len 25");
        assert_losses_near(model, &shell.losses("slots")[..1], &shell.losses("separate")[..1], 1e-5);
    }
}

#[test]
fn recomputed_activations_are_the_kept_ones() {
    for options in ["--method lora", "--dropout 0.2"] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(12, 96, 1));
        for choice in ["none", "all"] {
            shell.succeed(&format!(
                "{} --data data.jsonl --out {choice} --steps 8 --lr 0.002 --recompute {choice} {options}",
                train_on("qwen3")
            ));
        }
        assert_eq!(shell.losses("none"), shell.losses("all"), "{options}");
        shell.assert_same_adapter(options, ["none", "all"]);
        let memory = |run: &str| shell.metrics(run)[0]["gpu_bytes"].as_u64().unwrap();
        assert!(memory("all") < memory("none"), "{options}");
    }
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    for options in ["--log-every 1", "--log-every 3", "--log-every 3 --dropout 0.1 --grad-accum 2 --eval-every 2"] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(11, 96, 1));
        shell.write("held_out.jsonl", random_lines(3, 96, 2));
        let command = format!(
            "{} --data data.jsonl --eval-data held_out.jsonl --steps 10 --lr 0.01 --schedule cosine --warmup-steps 3 \
             --batch-size 2 --save-every 1 --keep 100 {options}",
            train_on("llama_tied")
        );
        shell.succeed(&format!("{command} --out whole"));
        assert_eq!(shell.names("whole/checkpoints").len(), 10);
        for step in [1, 4, 9, 10] {
            // What is left where the run was killed right after this checkpoint, or some lines later.
            let cut = format!("cut{step}");
            cli::copy_files(&shell.path("whole"), &shell.path(&cut));
            let checkpoint = format!("checkpoints/step-{step}");
            cli::copy_files(&shell.path(&format!("whole/{checkpoint}")), &shell.path(&format!("{cut}/{checkpoint}")));
            shell.write(&format!("{cut}/adapter_model.safetensors"), "old");
            let shown = shell.succeed(&format!("{command} --out {cut} --resume"));
            assert!(shown.contains(&format!("resumed after step {step} ")), "{shown}");
            shell.assert_same_adapter(options, ["whole", &cut]);
            assert_eq!(shell.timeless_metrics("whole"), shell.timeless_metrics(&cut), "{options}, step {step}");
        }
    }
}

/// At a learning rate too small to change a weight, each step's loss is its own example's: an epoch of single examples has
/// the same losses under every seed, in another order.
#[test]
fn the_seed_changes_the_order_of_the_examples_and_nothing_else() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(12, 96, 1));
    let losses = |seed: u64| {
        let out = format!("seed{seed}");
        shell.succeed(&format!(
            "{} --data data.jsonl --out {out} --batch-size 1 --steps 24 --lr 1e-38 --schedule constant --seed {seed}",
            train_on("llama_tied")
        ));
        shell.losses(&out)
    };
    let sorted = |losses: &[f64]| {
        let mut losses = losses.to_vec();
        losses.sort_by(f64::total_cmp);
        losses
    };
    let first = losses(0);
    assert_ne!(first[..12], first[12..], "each epoch has its own order");
    assert_eq!(sorted(&first[..12]), sorted(&first[12..]));
    for seed in [1, 7] {
        let other = losses(seed);
        assert_ne!(first, other);
        assert_eq!(sorted(&first[..12]), sorted(&other[..12]), "seed {seed}");
    }
}

#[test]
fn the_seed_changes_order_and_start_and_watching_changes_nothing() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(12, 96, 1));
    shell.write("held_out.jsonl", random_lines(9, 96, 2));
    let command = format!("{} --data data.jsonl --steps 7 --lr 0.01 --dropout 0.1", train_on("llama_tied"));
    shell.succeed(&format!("{command} --out plain"));
    for (index, watching) in [
        "--save-every 2 --keep 1",
        "--log-every 4",
        "--eval-data held_out.jsonl --eval-every 1",
        "--eval-data held_out.jsonl --eval-every 3 --save-every 3 --log-every 2",
        "--profile",
        "--seed 0",
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("watched{index}");
        shell.succeed(&format!("{command} --out {out} {watching}"));
        shell.assert_same_adapter(watching, ["plain", &out]);
    }
    shell.succeed(&format!("{command} --out other --seed 1"));
    assert_ne!(shell.losses("other")[0], shell.losses("plain")[0]);
    // With the order kept and B at zero, the first loss is the base's, whatever the seed; the next ones are not.
    for seed in [0, 1] {
        let options = format!("--no-shuffle --seed {seed} --out ordered{seed}");
        shell.succeed(&format!("{command} {options}"));
    }
    let [first, second] = ["ordered0", "ordered1"].map(|run| shell.losses(run));
    assert_eq!(first[0], second[0]);
    assert_ne!(first[1], second[1]);
}
