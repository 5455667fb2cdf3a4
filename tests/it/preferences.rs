//! Preference objectives: losses and gradients against PyTorch's, 20 steps against TRL's trainers (`fixtures/preferences.py`), runs that
//! repeat and resume, and data that is read or refused.

use std::path::Path;

use loraine::data::batches::MicroBatch;
use loraine::data::{Comparison, Example};
use loraine::model::config::ModelConfig;
use loraine::network::base::BaseStorage;
use loraine::train::objective::Objective;
use loraine::train::preference::{Preference, PreferenceLoss};
use serde_json::{Value, json};

use crate::common::cli::{Shell, copy_files};
use crate::common::*;
use crate::trainer::{values, write_model};

/// The examples of the reference: two chosen and two rejected sequences after prompts of 8 tokens.
fn sequences(reference: &Reference) -> Vec<Example> {
    let sequence = |i: usize| {
        let ids = reference.ids(&format!("input_ids.{i}"));
        let trained = (0..ids.len()).map(|at| at >= 8).collect();
        Example::new(ids, trained)
    };
    (0..4).map(sequence).collect()
}

fn pair_batch(reference: &Reference, whole: bool) -> MicroBatch {
    let [a, b, c, d]: [Example; 4] = sequences(reference).try_into().unwrap();
    let known = reference.get("reference_logps");
    let mut batch = MicroBatch::default();
    for (at, (chosen, rejected)) in [(a, c), (b, d)].into_iter().enumerate() {
        let example = Example { comparison: Comparison::Rejected(Box::new(rejected)), ..chosen };
        batch.add(&example, whole, [known[at], known[at + 2]].map(f64::from));
    }
    batch
}

/// Two good and two bad answers; the estimate of the divergence is that of the reference.
fn rated_batch(reference: &Reference) -> MicroBatch {
    let known = reference.get("reference_logps");
    let divergence = f64::from(reference.get("settings")[2]);
    let mut batch = MicroBatch::default();
    for (at, example) in sequences(reference).into_iter().enumerate() {
        let comparison = Comparison::Rated { desirable: at < 2, mismatched: None };
        batch.add(&Example { comparison, ..example }, false, [f64::from(known[at]), -divergence]);
    }
    batch
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let Some(dir) = shared("reference/methods/untied") else { return };
    let reference = Reference::read(&dir.join("preferences.safetensors"));
    let config = ModelConfig::from_dir(&dir).unwrap();
    let (modules, tensors) = adapter(&dir.join("plain"), &config);
    let settings: Vec<f64> = reference.get("settings").iter().map(|v| f64::from(*v)).collect();
    for kept_layers in [0, usize::MAX] {
        let mut engine = open_engine(&dir, BaseStorage::AsStored, &modules, &tensors, 96, kept_layers);
        // The base alone is the reference, with the adapter switched off and with one that does nothing.
        let plain = pair_batch(&reference, false);
        let known = reference.get("reference_logps");
        let off = pollster::block_on(engine.answer_logps(&plain, false)).unwrap();
        engine.write_adapter(&without_effect(&tensors));
        let zero = pollster::block_on(engine.answer_logps(&plain, true)).unwrap();
        engine.write_adapter(&tensors);
        let own = pollster::block_on(engine.answer_logps(&plain, true)).unwrap();
        for (at, expected) in known.iter().enumerate() {
            let (pair, answer) = (at % 2, at / 2);
            assert!((off[pair][answer] / f64::from(*expected) - 1.0).abs() < 1e-5, "{off:?} {known:?}");
            assert_eq!(off[pair][answer], zero[pair][answer]);
            let expected = f64::from(reference.get("logps")[at]);
            assert!((own[pair][answer] / expected - 1.0).abs() < 1e-5, "{own:?}");
        }
        for (name, loss) in [
            ("dpo", PreferenceLoss::Dpo),
            ("dpo_sft", PreferenceLoss::Rpo),
            ("ipo", PreferenceLoss::Ipo),
            ("simpo", PreferenceLoss::Simpo),
            ("orpo", PreferenceLoss::Orpo),
            ("kto", PreferenceLoss::Kto),
        ] {
            let beta = if loss == PreferenceLoss::Simpo { settings[3] } else { settings[0] };
            let preference =
                Preference { beta, simpo_gamma: settings[1], undesirable_weight: settings[4], ..Preference::new(loss) };
            engine.objective = Objective::Preference(preference);
            let batch = match loss {
                PreferenceLoss::Kto => rated_batch(&reference),
                _ => pair_batch(&reference, preference.learns_prompts()),
            };
            pollster::block_on(engine.accumulate(std::slice::from_ref(&batch), 0)).unwrap();
            let found = engine.tally().mean_loss();
            let expected = f64::from(reference.get(&format!("{name}.loss"))[0]);
            assert!((found / expected - 1.0).abs() < 1e-5, "{name}: loss {found} instead of {expected}");
            let gradients = pollster::block_on(engine.read_gradients()).unwrap();
            let what = format!("{name}, {kept_layers} kept layers");
            assert_factors(&what, &gradients, &modules, &reference, &format!("{name}.grad."), ".weight", 2e-4);
            let again = pollster::block_on(engine.compare(&batch, preference)).unwrap();
            assert_eq!(again, *engine.tally(), "{name}: an evaluation has the same sums");
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    let Some(dir) = shared("reference/methods/untied") else { return };
    let reference = Reference::read(&dir.join("preferences.safetensors"));
    let config = ModelConfig::from_dir(&dir).unwrap();
    let (modules, tensors) = adapter(&dir.join("plain"), &config);
    let mut engine = open_engine(&dir, BaseStorage::AsStored, &modules, &tensors, 96, 1);
    engine.objective = Objective::Preference(Preference::new(PreferenceLoss::Dpo));
    let whole = pair_batch(&reference, false);
    let examples = sequences(&reference);
    let known = reference.get("reference_logps");
    let single = |at: usize| {
        let comparison = Comparison::Rejected(Box::new(examples[at + 2].clone()));
        let mut batch = MicroBatch::default();
        let example = Example { comparison, ..examples[at].clone() };
        batch.add(&example, false, [known[at], known[at + 2]].map(f64::from));
        batch
    };
    let mut gradients = |batches: &[MicroBatch]| {
        pollster::block_on(engine.accumulate(batches, 0)).unwrap();
        pollster::block_on(engine.read_gradients()).unwrap().values().flatten().copied().collect::<Vec<f32>>()
    };
    let (together, apart) = (gradients(&[whole]), gradients(&[single(0), single(1)]));
    assert_close("gradients of two micro-batches", &apart, &together, 1e-5);
}

/// Writes the adapter of the fixture, whose values follow from a formula, as PEFT does.
fn write_adapter(dir: &Path, settings: &Value, config: &Value) {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    std::fs::create_dir(dir).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let rank = settings["rank"].as_u64().unwrap() as usize;
    let (hidden, ffn) = (size("hidden_size"), size("intermediate_size"));
    let mut names = Vec::new();
    for layer in 0..size("num_hidden_layers") {
        for (module, input) in [("mlp.down_proj", ffn), ("self_attn.q_proj", hidden)] {
            let path = format!("base_model.model.model.layers.{layer}.{module}");
            names.push((format!("{path}.lora_A.weight"), vec![rank, input]));
            names.push((format!("{path}.lora_B.weight"), vec![hidden, rank]));
        }
    }
    names.sort();
    let bytes = |(place, (_, shape)): (usize, &(String, Vec<usize>))| -> Vec<u8> {
        values(place, shape.iter().product()).flat_map(|value| (value as f32).to_le_bytes()).collect()
    };
    let data: Vec<_> = names.iter().enumerate().map(bytes).collect();
    let views = names
        .iter()
        .zip(&data)
        .map(|((name, shape), bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("adapter_model.safetensors"), serialize(views, None).unwrap()).unwrap();
    let adapter = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": settings["alpha"], "target_modules": settings["targets"],
        "task_type": "CAUSAL_LM",
    });
    std::fs::write(dir.join("adapter_config.json"), adapter.to_string()).unwrap();
}

#[test]
fn twenty_steps_have_the_losses_and_values_of_trl() {
    let Some(tokenizer) = shared("tokenizers/tinyllama-1.1b-chat") else { return };
    let recorded = json_file("preferences.json");
    let settings = &recorded["settings"];
    for case in recorded["cases"].as_array().unwrap() {
        let objective = case["objective"].as_str().unwrap();
        let shell = Shell::new();
        write_model(&shell.path("model"), &recorded["config"], &tokenizer);
        write_adapter(&shell.path("start"), settings, &recorded["config"]);
        let records = if objective == "kto" { &recorded["rated"] } else { &recorded["pairs"] };
        let lines = records.as_array().unwrap().iter().map(|record| format!("{record}\n"));
        shell.write("data.jsonl", lines.collect::<String>());
        let flags = case["flags"].as_object().unwrap().iter();
        let flags: String = flags.map(|(key, value)| format!(" --{} {value}", key.replace('_', "-"))).collect();
        shell.succeed(&format!(
            "train --model model --method lora --init-adapter start --data data.jsonl --out run --no-shuffle --steps {} --batch-size \
             {} --lr {} --objective {objective}{flags}",
            settings["steps"], settings["batch"], settings["lr"]
        ));
        let close = |what: &str, found: f64, expected: f64| {
            assert!(
                (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
                "{objective} {what}: {found} {expected}"
            );
        };
        let (losses, expected) = (shell.losses("run"), numbers(&case["losses"]));
        assert_eq!(losses.len(), expected.len());
        for (step, (loss, expected)) in losses.iter().zip(expected).enumerate() {
            close(&format!("loss of step {}", step + 1), *loss, expected);
        }
        let metrics = shell.metrics("run");
        let steps = metrics.iter().filter(|line| line.get("loss").is_some());
        for (line, expected) in steps.zip(case["values"].as_array().unwrap()) {
            for (name, value) in expected.as_object().unwrap() {
                let found = line.get(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {name} in {line:?}"));
                close(name, found, value.as_f64().unwrap());
            }
        }
    }
}

fn json_file(name: &str) -> Value {
    json(&fixture(name))
}

/// Pairs of answers, and the same answers with labels, as texts.
fn write_data(shell: &Shell) {
    const WORDS: [&str; 5] = ["red", "green", "blue", "old", "new"];
    let words =
        |first: usize, count: usize| (0..count).map(|i| WORDS[(first * 7 + i * 3) % 5]).collect::<Vec<_>>().join(" ");
    let (mut pairs, mut rated) = (String::new(), String::new());
    for i in 0..24 {
        let [prompt, chosen, rejected] = [words(i, 3), words(i + 1, 2 + i % 3), words(i + 2, 5 - i % 2)];
        let (chosen, rejected) = (format!(" {chosen}"), format!(" not {rejected}"));
        let answer = if i % 3 == 0 { &rejected } else { &chosen };
        rated += &format!("{}\n", json!({"prompt": prompt, "completion": answer, "label": i % 3 != 0}));
        pairs += &format!("{}\n", json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}));
    }
    shell.write("pairs.jsonl", pairs);
    shell.write("rated.jsonl", rated);
}

pub fn demo_model(shell: &Shell) {
    loraine::demo::write(&shell.path("demo")).unwrap();
    write_data(shell);
}

#[test]
fn runs_repeat_and_resume_to_the_bit() {
    let shell = Shell::new();
    demo_model(&shell);
    for (objective, data, options) in [
        ("dpo", "pairs", "--packing --dropout 0.1 --recompute all --label-smoothing 0.1"),
        ("orpo", "pairs", "--method lora --grad-accum 2 --batch-size 2"),
        ("kto", "rated", "--activations bf16 --batch-size 3"),
    ] {
        let command = format!(
            "train --model demo/model --data {data}.jsonl --objective {objective} {options} --steps 4 --lr 0.001 --rank 4 --save-every 2 \
             --keep 9 --eval-every 2"
        );
        for out in ["whole", "again"] {
            shell.succeed(&format!("{command} --out {objective}-{out}"));
        }
        let [whole, again, cut] = ["whole", "again", "cut"].map(|out| format!("{objective}-{out}"));
        shell.assert_same_adapter(objective, [&whole, &again]);
        copy_files(&shell.path(&whole), &shell.path(&cut));
        copy_files(
            &shell.path(&format!("{whole}/checkpoints/step-2")),
            &shell.path(&format!("{cut}/checkpoints/step-2")),
        );
        shell.succeed(&format!("{command} --out {cut} --resume"));
        shell.assert_same_adapter(objective, [&whole, &cut]);
        assert_eq!(shell.timeless_metrics(&whole), shell.timeless_metrics(&cut), "{objective}");
        shell.fail(&format!("{command} --out {cut} --resume --beta 0.3"), &["beta", "0.3"]);
        let evaluation = shell.succeed(&format!(
            "eval --model demo/model --quant nf4 --adapter {whole} --data {data}.jsonl --objective {objective} --json"
        ));
        let evaluation: Value = serde_json::from_str(evaluation.lines().last().unwrap()).unwrap();
        assert!(evaluation["rewards/chosen"].is_f64() && evaluation["loss"].is_f64(), "{evaluation}");
    }
}

#[test]
fn every_objective_learns_from_pairs() {
    let shell = Shell::new();
    demo_model(&shell);
    for objective in ["dpo", "ipo", "rpo", "orpo", "simpo", "kto"] {
        for method in if objective == "dpo" { &["qlora", "full"][..] } else { &["qlora"] } {
            let out = format!("{objective}-{method}");
            let lr = if *method == "full" { 0.0005 } else { 0.01 };
            shell.succeed(&format!(
                "train --model demo/model --data pairs.jsonl --out {out} --objective {objective} --method {method} --steps 8 --lr {lr} \
                 --eval-data pairs.jsonl --batch-size 8"
            ));
            let evaluations: Vec<_> =
                shell.metrics(&out).into_iter().filter(|line| line.get("eval_loss").is_some()).collect();
            let of = |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} in {line}"));
            let [first, last] = [&evaluations[0], &evaluations[evaluations.len() - 1]];
            assert!(of(last, "eval_loss") < of(first, "eval_loss"), "{out}: {first} {last}");
            assert!(of(last, "eval_rewards/margins") > of(first, "eval_rewards/margins"), "{out}: {first} {last}");
        }
    }
}

#[test]
fn data_that_does_not_fit_the_objective_is_refused() {
    let shell = Shell::new();
    demo_model(&shell);
    let train = "train --model demo/model --out run --steps 1";
    for (options, says) in [
        ("--data pairs.jsonl", "choose --objective dpo"),
        ("--data rated.jsonl --objective dpo", "learns from preference (prompt, chosen and rejected)"),
        ("--data demo/data --objective kto", "learns from unpaired-preference (prompt, completion and label)"),
        ("--data pairs.jsonl --objective kto --batch-size 1", "--batch-size is 1"),
        ("--data pairs.jsonl --objective dpo --on-long split", "--on-long split would tear"),
        (
            "--data pairs.jsonl --objective orpo --label-smoothing 0.1",
            "--label-smoothing has no use with --objective orpo",
        ),
    ] {
        shell.fail(&format!("{train} {options}"), &[says]);
    }
    let shown = shell.succeed("inspect --model demo/model --data pairs.jsonl -n 1 --json");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let found: Vec<_> = shown["examples"].as_array().unwrap().iter().map(|example| &example["found"]).collect();
    assert_eq!(found, ["chosen", "rejected"]);
    // A label is no feedback where the objective does not ask for it.
    shell.succeed(&format!("{train} --data rated.jsonl --overwrite"));
}

#[test]
fn the_demo_teaches_a_preference() {
    let shell = Shell::new();
    let lines = shell.succeed("demo --preferences --steps 60 --out demo --json");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let shares = lines.iter().find(|line| line["event"] == "preferred").expect("the shares");
    let of = |name: &str| shares[name].as_f64().unwrap();
    assert!(of("before") < 0.2 && of("after") > 0.8, "{shares}");
}

#[test]
fn a_pair_needs_the_memory_of_its_tokens() {
    let shell = Shell::new();
    demo_model(&shell);
    // The same tokens as single answers.
    let pairs = String::from_utf8(shell.read("pairs.jsonl")).unwrap();
    let single = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let of = |answer: &str| format!("{}\n", json!({"prompt": record["prompt"], "completion": record[answer]}));
        of("chosen") + &of("rejected")
    };
    shell.write("single.jsonl", pairs.lines().map(single).collect::<String>());
    let bytes = |options: &str| {
        let shown = shell.succeed(&format!(
            "train --model demo/model --out run --dry-run --json --eval-fraction 0 --recompute none {options}"
        ));
        let lines = shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.into_iter().find_map(|line| line["gpu_bytes"].as_u64()).expect("a plan")
    };
    let plain = bytes("--data single.jsonl --batch-size 8");
    for objective in ["dpo", "orpo"] {
        let paired = bytes(&format!("--data pairs.jsonl --batch-size 4 --objective {objective}"));
        assert!(paired as f64 <= 1.3 * plain as f64, "{objective}: {paired} bytes instead of {plain}");
    }
}
