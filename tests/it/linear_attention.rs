//! Models with a gated delta rule in place of attention, through the CLI: how they are trained, and the files that come out.

use crate::common::cli::{Shell, copy_files, random_lines};
use crate::common::{Reference, fixture};

const ALONE: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2";
const RUN: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2 --batch-size 4";

fn shell(model: &str) -> Shell {
    let shell = Shell::new();
    copy_files(&fixture(model), &shell.path("model"));
    shell.write("data.jsonl", random_lines(24, 96, 7));
    shell
}

/// A state that went on over the start of a sequence would see the one before it.
#[test]
fn packing_and_recomputation_change_no_result() {
    let shell = shell("qwen3_5");
    for (out, options) in [("kept", "--recompute none"), ("again", "--recompute all")] {
        shell.succeed(&format!("train --model model --method lora --out {out} {RUN} {options}"));
    }
    assert_eq!(shell.losses("kept"), shell.losses("again"));
    shell.assert_same_adapter("recomputation", ["kept", "again"]);
    let separate = "--batch-size 1 --grad-accum 4";
    shell.succeed(&format!("train --model model --method lora --out separate {ALONE} --recompute none {separate}"));
    for (packed, separate) in shell.losses("kept").iter().zip(shell.losses("separate")) {
        assert!((packed / separate - 1.0).abs() < 1e-4, "{packed} {separate}");
    }
}

#[test]
fn every_linear_layer_is_adapted_and_merged() {
    for model in ["qwen3_5", "qwen3_5_vision"] {
        let shell = shell(model);
        shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
        let of_peft = Reference::read(&fixture(model).join("adapter/adapter_model.safetensors"));
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
            let linear = name.contains("layers.") && (name.contains("_proj.") || name.contains("in_proj_"));
            // The other model's files are in bf16, which is not what is merged.
            if model == "qwen3_5_vision" {
                assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
            }
        }
        assert_eq!(before.names().count(), merged.names().count());
    }
}

#[test]
fn a_quantized_directory_trains_as_the_model_quantized_while_loading() {
    let shell = shell("qwen3_5");
    shell.succeed("quantize --model model --out nf4");
    let held = Reference::read(&shell.path("nf4/model.safetensors"));
    assert!(held.names().any(|name| name == "model.layers.1.linear_attn.in_proj_z.weight.absmax"));
    assert_eq!(held.shape("model.layers.1.linear_attn.conv1d.weight"), [80, 1, 4]);
    shell.succeed(&format!("train --model nf4 --out run4 {RUN}"));
    shell.succeed(&format!("train --model model --out twin4 {RUN}"));
    let [run, twin] = ["run4", "twin4"].map(|of| shell.read(&format!("{of}/adapter_model.safetensors")));
    assert!(run == twin, "the adapters differ");
}

#[test]
fn target_modules_that_leave_the_rule_out_are_told() {
    let shell = shell("qwen3_5");
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
