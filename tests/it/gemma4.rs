//! Gemma 4, through the CLI: two sizes of heads, keys and values that layers share, and embeddings for each layer.

use crate::common::cli::{Shell, copy_files, random_lines};
use crate::common::{Reference, fixture};

const RUN: &str = "--data data.jsonl --steps 4 --rank 4 --alpha 16 --lr 1e-2 --batch-size 4";

fn shell() -> Shell {
    let shell = Shell::new();
    copy_files(&fixture("gemma4"), &shell.path("model"));
    shell.write("data.jsonl", random_lines(24, 96, 7));
    shell
}

#[test]
fn every_linear_layer_is_adapted_and_merged() {
    let shell = shell();
    for (out, options) in [("run", "--recompute none"), ("again", "--recompute all")] {
        shell.succeed(&format!("train --model model --method lora --out {out} {RUN} {options}"));
    }
    shell.assert_same_adapter("recomputation", ["run", "again"]);
    let of_peft = Reference::read(&fixture("gemma4").join("adapter/adapter_model.safetensors"));
    let mut names: Vec<_> = shell.adapter("run").names().map(str::to_owned).collect();
    let mut expected: Vec<_> = of_peft.names().map(str::to_owned).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    let merge = "merge --model model --adapter run --out merged --dtype f32 --json";
    let report: serde_json::Value = serde_json::from_str(&shell.succeed(merge)).unwrap();
    assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
    let [before, merged] = ["model", "merged"].map(|of| Reference::read(&shell.path(of).join("model.safetensors")));
    for name in before.names() {
        assert_eq!(merged.shape(name), before.shape(name), "{name}");
        let linear = ["_proj.", "per_layer_input_gate", "per_layer_projection.", "per_layer_model_projection"]
            .iter()
            .any(|part| name.contains(part));
        assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
    }
    assert_eq!(before.names().count(), merged.names().count());
}

#[test]
fn what_is_frozen_says_so() {
    let shell = shell();
    let says = ["share keys and values", "cannot be trained themselves; take --method lora or --method qlora"];
    shell.fail("train --model model --method full --out run --data data.jsonl", &says);
    let train = format!("train --model model --out run {RUN} --target-modules");
    shell.fail(&format!("{train} q_proj,embed_tokens"), &["embeddings for each layer"]);
}
