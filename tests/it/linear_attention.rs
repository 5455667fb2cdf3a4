//! Models with a gated delta rule in place of attention, through the CLI: how they are trained, and the files that come out.

use crate::common::cli::Shell;

const ALONE: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2";
const RUN: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2 --batch-size 4";

/// A state that went on over the start of a sequence would see the one before it.
#[test]
fn packing_and_recomputation_change_no_result() {
    Shell::with_model("qwen3_5").assert_packing_and_recomputation_change_nothing(ALONE);
}

#[test]
fn every_linear_layer_is_adapted_and_merged() {
    for model in ["qwen3_5", "qwen3_5_vision"] {
        let shell = Shell::with_model(model);
        shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
        shell.assert_adapts_as_peft(model);
        let [before, merged] = shell.merged();
        for name in before.names() {
            let linear = name.contains("layers.") && (name.contains("_proj.") || name.contains("in_proj_"));
            // The other model's files are in bf16, which is not what is merged.
            if model == "qwen3_5_vision" {
                assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
            }
        }
    }
}

#[test]
fn a_quantized_directory_trains_as_the_model_quantized_while_loading() {
    let shell = Shell::with_model("qwen3_5");
    let held = shell.assert_quantized_directory_trains_alike(RUN);
    assert!(held.names().any(|name| name == "model.layers.1.linear_attn.in_proj_z.weight.absmax"));
    assert_eq!(held.shape("model.layers.1.linear_attn.conv1d.weight"), [80, 1, 4]);
}

#[test]
fn target_modules_that_leave_the_rule_out_are_told() {
    let shell = Shell::with_model("qwen3_5");
    let names = "--target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
    let text = shell.succeed(&format!("train --model model --method lora --out run {RUN} {names}"));
    let says = "leaves out linear_attn, which 3 of 4 layers have in place of attention";
    assert!(text.replace("\n        ", " ").contains(says), "{text}");
    let text = shell.succeed(&format!("train --model model --method lora --out all {RUN}"));
    assert!(!text.contains("linear_attn"), "{text}");
    let says = ["model.layers.0.linear_attn.conv1d", "not a linear layer"];
    shell.fail(&format!("train --model model --out one {RUN} --target-modules q_proj,conv1d"), &says);
    let says = ["matches no module", "in_proj_qkv", "model.layers.0."];
    shell.fail(&format!("train --model model --out one {RUN} --target-modules c_attn"), &says);
}
