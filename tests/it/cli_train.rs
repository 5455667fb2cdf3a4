//! `loraine train` and `loraine eval` at the terminal: PEFT's numbers, the files of a run, and runs that repeat.

use crate::common::cli::{Shell, random_lines, texts, token_lines, train_on};
use crate::common::*;

/// Losses of a run against PEFT's: the first within 1e-4, all within 2e-3.
fn assert_losses(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (step, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = if step == 0 { 1e-4 } else { 2e-3 };
        assert!((got / want - 1.0).abs() < bound, "{what}: loss {got} of step {} instead of {want}", step + 1);
    }
}

/// Every tensor named `prefix` + its name in the adapter.
fn assert_adapter(what: &str, got: &Reference, want: &Reference, prefix: &str) {
    assert!(got.names().count() > 0);
    for name in got.names() {
        assert_close(&format!("{what}: {name}"), got.get(name), want.get(&format!("{prefix}{name}")), 2e-2);
    }
}

/// The 20 steps that PEFT made on a real trained model.
fn check_stories(mode: &str, method: &str) {
    let (Some(model), Some(dir)) =
        (shared("models/stories260K"), shared(&format!("reference/lora_stories260K_{mode}")))
    else {
        return;
    };
    let shell = Shell::new();
    let batches = Reference::read(&dir.join("batches.safetensors"));
    let length = batches.shape("input_ids")[2];
    shell.write("data.jsonl", token_lines(batches.ids("input_ids").chunks(length)));
    shell.succeed(&format!(
        "train --model {} --data data.jsonl --out run --method {method} --init-adapter {} --batch-size 4 --steps 20 \
         --eval-fraction 0 --no-shuffle --lr 1e-3 --schedule constant --weight-decay 0.01 --max-grad-norm 0",
        model.display(),
        dir.join("adapter_init").display()
    ));
    assert_losses(mode, &shell.losses("run"), &numbers(&json(&dir.join("report.json"))["losses"]));
    let want = Reference::read(&dir.join("adapter_final/adapter_model.safetensors"));
    assert_adapter(mode, &shell.adapter("run"), &want, "");
}

#[test]
fn lora_on_a_real_model_has_pefts_losses_and_adapter() {
    check_stories("f32", "lora");
}

#[test]
fn qlora_on_a_real_model_has_pefts_losses_and_adapter() {
    check_stories("nf4", "qlora");
}

#[test]
fn a_fixture_has_pefts_losses_and_adapter() {
    let dir = fixture("llama_tied");
    let (report, want) = (json(&dir.join("reference.json")), Reference::read(&dir.join("reference.safetensors")));
    let shell = Shell::new();
    let ids = [0, 1, 2].map(|i| want.ids(&format!("input_ids.{i}")));
    shell.write("data.jsonl", token_lines(ids.iter().map(Vec::as_slice)));
    shell.succeed(&format!(
        "{} --data data.jsonl --out run --method lora --init-adapter {} --batch-size 3 --steps 10 --no-shuffle \
         --lr {} --schedule constant --weight-decay {} --max-grad-norm {}",
        train_on("llama_tied"),
        dir.join("adapter").display(),
        report["lr"],
        report["weight_decay"],
        report["max_grad_norm"]
    ));
    assert_losses("llama_tied", &shell.losses("run"), &numbers(&report["losses"]));
    assert_adapter("llama_tied", &shell.adapter("run"), &want, "final.");
}

#[test]
fn a_run_repeats_to_the_byte_and_from_its_own_run_toml() {
    for (method, quantization) in [("lora", ""), ("qlora", ""), ("qlora", "--quant fp4 --no-double-quant")] {
        let shell = Shell::new();
        shell.write("data.jsonl", random_lines(14, 96, 1));
        let run = |out: &str| {
            shell.succeed(&format!(
                "{} --data data.jsonl --out {out} --method {method} {quantization} --epochs 2.5 --rank 4 --alpha 7 \
                 --dropout 0.1 --target-modules q_proj,down_proj --rslora --grad-accum 2 --batch-size 2 --lr 0.01 \
                 --schedule cosine --warmup-steps 2 --weight-decay 0.1 --max-grad-norm 0.5 --seed 7 --eval-every 4 \
                 --eval-fraction 0.2 --recompute all --log-every 2",
                train_on("llama_tied")
            ))
        };
        run("a");
        run("b");
        shell.succeed("train --config a/run.toml --out c");
        for other in ["b", "c"] {
            shell.assert_same_adapter(method, ["a", other]);
            assert_eq!(shell.timeless_metrics("a"), shell.timeless_metrics(other), "{method} {other}");
        }
        assert_eq!(shell.losses("a").len(), 4, "8 steps, every second logged");
        shell.succeed("train --config a/run.toml --out d --seed 8");
        assert_ne!(shell.losses("a"), shell.losses("d"), "a flag wins over the file");
    }
}

#[test]
fn metrics_have_their_fields_and_the_printed_plan_is_what_was_allocated() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(8, 96, 1));
    let command = format!("{} --data data.jsonl --out run --steps 3", train_on("llama_tied"));
    let planned = shell.succeed(&format!("{command} --dry-run --json"));
    let planned = planned.lines().find(|line| line.contains(r#""event":"plan""#)).expect("a plan");
    let planned: serde_json::Value = serde_json::from_str(planned).unwrap();
    let shown = shell.succeed(&command);
    // Round figures for people, on lines that fit into a terminal; bytes for programs.
    assert!(shown.contains("memory  ") && !shown.contains("bytes)"), "{shown}");
    let fields = ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "gpu_bytes"];
    let lines = shell.metrics("run");
    assert_eq!(lines.len(), 3);
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), fields);
        assert_eq!(line["step"], index + 1);
        assert_eq!(line["gpu_bytes"], planned["gpu_bytes"], "{planned}");
    }
    assert!(lines.is_sorted_by_key(|line| line["tokens"].as_u64()));
    for file in ["README.md", "adapter_config.json", "adapter_model.safetensors", "loss.svg", "run.toml"] {
        assert!(!shell.read(&format!("run/{file}")).is_empty());
    }
    assert!(!shell.names("run").iter().any(|name| name.ends_with(".part")));
}

#[test]
fn json_lines_tell_programs_what_people_read() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(8, 96, 1));
    let train = format!("{} --data data.jsonl --eval-fraction 0.25 --steps 3 --json", train_on("llama_tied"));
    let lines = |shown: &str| -> Vec<serde_json::Value> {
        shown.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    };
    let events = |lines: &[serde_json::Value]| -> Vec<String> {
        lines.iter().map(|line| line["event"].as_str().expect("an event").to_owned()).collect()
    };
    let phases = |lines: &[serde_json::Value]| -> Vec<String> {
        lines.iter().filter_map(|line| line["phase"].as_str().map(str::to_owned)).collect()
    };
    let mut shown = lines(&shell.succeed(&format!("{train} --out run --save-every 2 --profile")));
    let begin = ["reading", "opening", "preparing", "loading", "compiling", "evaluating"];
    assert_eq!(phases(&shown)[..6], begin, "{shown:?}");
    shown.retain(|line| line["event"] != "phase");
    let want = [
        "data",
        "warning",
        "plan",
        "evaluation",
        "saved",
        "step",
        "step",
        "step",
        "evaluation",
        "saved",
        "profile",
        "end",
    ];
    let mut sorted = [events(&shown), want.map(str::to_owned).to_vec()];
    sorted.iter_mut().for_each(|events| events.sort());
    assert_eq!(sorted[0], sorted[1], "{shown:?}");
    let metrics = shell.metrics("run");
    let step = shown.iter().find(|line| line["event"] == "step").unwrap();
    assert_eq!(step["loss"], metrics[1]["loss"]);
    assert!(step["elapsed_seconds"].as_f64() > Some(0.0) && step["eta_seconds"].as_f64() > Some(0.0), "{step}");
    let last = shown.iter().rfind(|line| line["event"] == "step").unwrap();
    assert_eq!((&last["steps"], &last["eta_seconds"]), (&3.into(), &0.0.into()), "{last}");
    assert_eq!((&shown[0]["held_out"], &shown[1]["kind"]), (&2.into(), &"few-examples".into()), "{shown:?}");
    let plan = shown.iter().find(|line| line["event"] == "plan").unwrap();
    let parts: u64 = plan["categories"].as_object().unwrap().values().filter_map(|bytes| bytes.as_u64()).sum();
    assert_eq!((plan["gpu_bytes"].as_u64().unwrap(), &plan["gpu_bytes"]), (parts, &step["gpu_bytes"]));
    let end = shown.last().unwrap();
    assert_eq!((&end["step"], &end["interrupted"]), (&3.into(), &false.into()));
    assert_eq!(end["last_eval"]["eval_loss"], metrics.last().unwrap()["eval_loss"]);
    let planned = lines(&shell.succeed(&format!("{train} --out other --dry-run")));
    assert_eq!(events(&planned), ["phase", "data", "warning", "plan"]);
    assert_eq!(planned[3]["gpu_bytes"], plan["gpu_bytes"]);
    assert!(!shell.path("other").exists());
    let output = shell.command(&format!("{train} --out run")).output().unwrap();
    let (shown, problems) = texts(&output);
    let error = lines(&shown).pop().expect("an event");
    assert_eq!((&error["event"], &error["kind"], &error["path"]), (&"error".into(), &"file".into(), &"run".into()));
    assert_eq!(problems, format!("error: {}\n", error["message"].as_str().unwrap()));
    let output = shell.command("train --json").output().unwrap();
    let error = lines(&texts(&output).0).pop().expect("an event");
    assert_eq!(error["message"], "--model, --data and --out are missing");
    let output = shell.command("train --json --stpes 3").output().unwrap();
    let error = lines(&texts(&output).0).pop().expect("an event");
    assert_eq!((&error["kind"], output.status.code()), (&"usage".into(), Some(2)), "{error}");
    let shown = shell.succeed(&format!("quantize --model {} --out small --json", fixture("llama_tied").display()));
    let made: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(made["bytes_after"].as_u64() < made["bytes_before"].as_u64(), "{made}");
}

#[test]
fn eval_agrees_with_the_evaluation_inside_training() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(8, 101, 1));
    shell.write("held_out.jsonl", random_lines(5, 101, 2));
    for (method, quant) in [("lora", "none"), ("qlora", "nf4")] {
        let model = fixture("odd_sizes");
        shell.succeed(&format!(
            "{} --data data.jsonl --eval-data held_out.jsonl --out {method} --method {method} --steps 6 --lr 0.01",
            train_on("odd_sizes")
        ));
        let evaluations: Vec<_> =
            shell.metrics(method).into_iter().filter(|line| line.get("eval_loss").is_some()).collect();
        let [before, after] = &evaluations[..] else { panic!("{evaluations:?}") };
        for (adapter, want) in [("", before), (&*format!("--adapter {method}"), after)] {
            let command = format!("eval --model {} --data held_out.jsonl {adapter} --quant {quant}", model.display());
            let printed = shell.succeed(&format!("{command} --json"));
            let got: serde_json::Value = serde_json::from_str(&printed).expect("one JSON object");
            assert_eq!(got.as_object().unwrap().keys().collect::<Vec<_>>(), ["loss", "perplexity", "tokens", "data"]);
            let value = |value: &serde_json::Value| value.as_f64().unwrap();
            assert!((value(&got["loss"]) / value(&want["eval_loss"]) - 1.0).abs() < 1e-5, "{got} {want}");
            assert!((value(&got["perplexity"]) / value(&got["loss"]).exp() - 1.0).abs() < 1e-12);
            assert_eq!(got["tokens"], want["eval_tokens"]);
            let plain = shell.succeed(&command);
            assert!(plain.contains(&format!("\nloss {:.4}", value(&got["loss"]))), "{plain}");
        }
        assert_ne!(before["eval_loss"], after["eval_loss"]);
    }
}
