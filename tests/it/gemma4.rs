//! Gemma 4, through the CLI: two sizes of heads, keys and values that layers share, and embeddings for each layer.

use crate::common::cli::Shell;

const RUN: &str = "--data data.jsonl --steps 4 --rank 4 --alpha 16 --lr 1e-2 --batch-size 4";

#[test]
fn every_linear_layer_is_adapted_and_merged() {
    let shell = Shell::with_model("gemma4");
    for (out, options) in [("run", "--recompute none"), ("again", "--recompute all")] {
        shell.succeed(&format!("train --model model --method lora --out {out} {RUN} {options}"));
    }
    shell.assert_same_adapter("recomputation", ["run", "again"]);
    shell.assert_adapts_as_peft("gemma4");
    let [before, merged] = shell.merged();
    for name in before.names() {
        let linear = ["_proj.", "per_layer_input_gate", "per_layer_projection.", "per_layer_model_projection"]
            .iter()
            .any(|part| name.contains(part));
        assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
    }
}

#[test]
fn what_is_frozen_says_so() {
    let shell = Shell::with_model("gemma4");
    let says = ["share keys and values", "cannot be trained themselves; take --method lora or --method qlora"];
    shell.fail("train --model model --method full --out run --data data.jsonl", &says);
    let train = format!("train --model model --out run {RUN} --target-modules");
    shell.fail(&format!("{train} q_proj,embed_tokens"), &["embeddings for each layer"]);
}
