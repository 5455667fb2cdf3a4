//! Runs that keep their best evaluation, that go on elsewhere, and that leave alone what is not theirs.

use crate::common::cli::{Shell, random_lines, train_on};
use serde_json::Value;

/// Training that soon fits its few examples by heart, so that the loss on others rises.
const FIT: &str = "--data data.jsonl --eval-data held_out.jsonl --lr 0.05 --schedule constant --rank 4 --batch-size 2";

fn shell() -> Shell {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(4, 96, 1));
    shell.write("held_out.jsonl", random_lines(4, 96, 2));
    shell
}

fn train(options: &str) -> String {
    format!("{} {FIT} {options}", train_on("llama_tied"))
}

/// Step and loss of each evaluation after a step.
fn evaluations(shell: &Shell, run: &str) -> Vec<(u64, f64)> {
    let metrics = shell.metrics(run);
    let evaluation = |line: &Value| Some((line["step"].as_u64()?, line.get("eval_loss")?.as_f64()?));
    metrics.iter().filter_map(evaluation).filter(|(step, _)| *step > 0).collect()
}

fn best(evaluations: &[(u64, f64)]) -> u64 {
    evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
}

#[test]
fn early_stopping_ends_the_run_and_leaves_the_best_step() {
    let shell = shell();
    let shown = shell.succeed(&train("--steps 40 --eval-every 2 --early-stopping-patience 3 --keep 1 --out run"));
    let found = evaluations(&shell, "run");
    let best = best(&found);
    let last = found.last().unwrap().0;
    assert_eq!(last, best + 6, "three evaluations after the best: {found:?}");
    assert!(last < 40 && shown.contains(&format!("stopped early after step {last}")), "{shown}");
    assert!(shown.contains(&format!("best    step {best}: validation loss")), "{shown}");
    // The same run up to its best step.
    shell.succeed(&train(&format!("--steps {best} --out twin")));
    shell.assert_same_adapter("best step", ["twin", "run"]);
    let checkpoints = shell.names("run/checkpoints");
    assert!(checkpoints.contains(&format!("step-{best}")), "{checkpoints:?}");
}

#[test]
fn the_best_model_is_kept_to_the_end_over_a_stop_and_into_another_directory() {
    let shell = shell();
    let options = "--eval-every 2 --keep-best --save-every 5 --keep 1";
    shell.succeed(&train(&format!("--steps 20 {options} --out whole")));
    let found = evaluations(&shell, "whole");
    let best = best(&found);
    assert!(best < 14, "the loss on other examples rises: {found:?}");
    shell.succeed(&train(&format!("--steps {best} --out twin")));
    shell.assert_same_adapter("best step", ["twin", "whole"]);
    assert_eq!(
        shell.names("whole/checkpoints"),
        [format!("step-{best}"), "step-20".to_owned()]
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );

    // Stopped after the best step, and gone on with elsewhere: the checkpoint of the best step lies in the first run.
    shell.succeed(&train(&format!("--steps 15 {options} --out first")));
    let before = shell.read("first/metrics.jsonl");
    shell.succeed("train --resume first --steps 20 --out second");
    assert_eq!(shell.read("first/metrics.jsonl"), before, "the first run stays as it is");
    shell.assert_same_adapter("resumed elsewhere", ["whole", "second"]);
    assert_eq!(evaluations(&shell, "second").last(), found.last());
    assert_eq!(shell.losses("second"), shell.losses("whole"));
    shell.fail("train --resume first --steps 20 --out whole", &["whole: holds another run"]);
}

#[test]
fn what_cannot_find_a_best_step_is_refused() {
    let shell = shell();
    let alone = |options: &str| format!("{} --data data.jsonl --steps 2 --out x {options}", train_on("llama_tied"));
    shell.fail(&alone("--early-stopping 3"), &["--early-stopping-patience compares evaluations", "--eval-every"]);
    shell.fail(&alone("--keep-best --eval-every 1"), &["--load-best-model-at-end needs data", "--eval-data"]);
    assert!(!shell.path("x").exists());
}

#[test]
fn metrics_count_the_passes_over_the_data() {
    let shell = shell();
    shell.succeed(&train("--epochs 1.5 --eval-every 2 --out run"));
    let metrics = shell.metrics("run");
    let epochs: Vec<f64> =
        metrics.iter().filter(|line| line.get("loss").is_some()).map(|line| line["epoch"].as_f64().unwrap()).collect();
    // Four examples in batches of two.
    assert_eq!(epochs, [0.5, 1.0, 1.5]);
    assert!(metrics.iter().any(|line| line.get("eval_loss").is_some() && line["epoch"] == 1.0));
}

#[test]
fn a_run_is_gone_on_with_from_another_working_directory() {
    let shell = shell();
    shell.succeed(&train("--steps 6 --save-every 3 --out run"));
    shell.succeed(&train("--steps 3 --save-every 3 --out part"));
    std::fs::create_dir(shell.path("elsewhere")).unwrap();
    let part = shell.path("part");
    let mut command = shell.command(&format!("train --resume {} --steps 6", part.display()));
    let output = command.current_dir(shell.path("elsewhere")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    shell.assert_same_adapter("resumed", ["run", "part"]);
}

#[test]
fn overwriting_a_run_leaves_what_it_has_not_written() {
    let shell = shell();
    let run = train("--steps 2 --save-every 1 --out proj");
    for (dir, name) in
        [("checkpoints/mine", "weights"), ("checkpoints/step-9", "theirs"), ("", "README.md"), ("", "notes.txt")]
    {
        std::fs::create_dir_all(shell.path("proj").join(dir)).unwrap();
        shell.write(&format!("proj/{dir}/{name}"), "precious");
    }
    shell.succeed(&run);
    shell.fail(&run, &["proj: holds another run"]);
    shell.succeed(&format!("{run} --overwrite"));
    for kept in ["checkpoints/mine/weights", "checkpoints/step-9/theirs", "README.md", "notes.txt"] {
        assert_eq!(shell.read(&format!("proj/{kept}")), b"precious", "{kept}");
    }
    shell.succeed(&train("--steps 2 --out proj --overwrite"));
    assert_eq!(shell.names("proj/checkpoints"), ["mine", "step-9"]);
}

#[test]
fn modules_are_chosen_as_pefts_settings_choose_them() {
    let shell = shell();
    shell.write(
        "run.toml",
        "rank-pattern = { \"layers.1.*q_proj\" = 2, q_proj = 3 }\nalpha-pattern = { v_proj = 5.0 }\nexclude-modules = \"up_proj\"\n\
         init-lora-weights = \"gaussian\"\nadam-beta1 = 0.8\nadam-beta2 = 0.95\nadam-eps = 1e-6\n",
    );
    let flags = "--rank-pattern layers.1.*q_proj=2 --rank-pattern q_proj=3 --alpha-pattern v_proj=5 --exclude-modules up_proj \
                 --init-lora-weights gaussian --adam-beta1 0.8 --adam-beta2 0.95 --adam-eps 1e-6";
    shell.succeed(&train(&format!("--steps 3 --out flags {flags}")));
    shell.succeed(&train("--steps 3 --out file --config run.toml"));
    shell.succeed(&train("--steps 3 --out plain"));
    shell.assert_same_adapter("flags and file", ["flags", "file"]);
    let adapter = shell.adapter("flags");
    let shape = |module: &str| adapter.shape(&format!("base_model.model.model.layers.{module}.lora_A.weight"))[0];
    assert_eq!((shape("1.self_attn.q_proj"), shape("0.self_attn.q_proj"), shape("0.self_attn.k_proj")), (2, 3, 4));
    assert!(!adapter.names().any(|name| name.contains("up_proj")));
    let config: Value = serde_json::from_slice(&shell.read("flags/adapter_config.json")).unwrap();
    assert_eq!(config["rank_pattern"], serde_json::json!({ "layers.1.*q_proj": 2, "q_proj": 3 }));
    assert_eq!((&config["init_lora_weights"], &config["exclude_modules"][0]), (&"gaussian".into(), &"up_proj".into()));
    let one = "--steps 1 --target-modules q_proj,v_proj --layers-to-transform 1";
    shell.succeed(&train(&format!("{one} --out one")));
    assert!(shell.adapter("one").names().all(|name| name.contains("layers.1.")));
    // Betas alone change a run from its second step on.
    let losses = |run: &str| shell.losses(run);
    shell.succeed(&train("--steps 3 --out betas --adam-beta1 0.5"));
    assert_eq!(losses("betas")[..2], losses("plain")[..2]);
    assert_ne!(losses("betas")[2], losses("plain")[2]);
    shell.fail(&train("--steps 1 --out x --layers-to-transform 7"), &["--layers-to-transform names layer 7"]);
    shell.fail(&train("--steps 1 --out x --layers-pattern h"), &["--layers-pattern is h"]);
    shell.fail(&train("--steps 1 --out x --rank-pattern (q=2"), &["--rank-pattern: `(q` is not a regular expression"]);
    shell.fail(&train("--steps 1 --out x --adam-beta1 1"), &["--adam-beta1 is 1; it must be at least 0 and below 1"]);
}
