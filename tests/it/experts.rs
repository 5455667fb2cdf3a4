//! Models with experts, through the CLI: every way to train them, and the files that come out.

use crate::common::cli::Shell;
use crate::common::{Reference, fixture};
use loraine::model::config::ModelConfig;
use loraine::model::tensors::tensors;

const ALONE: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 2e-2";
const RUN: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 2e-2 --batch-size 4";

/// Few rows take other tiles than many, and an expert's rows come from several sequences.
#[test]
fn packing_and_recomputation_change_no_result() {
    for model in ["qwen3_moe", "lfm2_moe", "gpt_oss"] {
        Shell::with_model(model).assert_packing_and_recomputation_change_nothing(ALONE);
    }
}

#[test]
fn exports_hold_every_expert() {
    let shell = Shell::with_model("qwen3_moe");
    shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
    assert!(shell.adapter("run").names().all(|name| name.contains(".self_attn.")));
    let report: serde_json::Value =
        serde_json::from_str(&shell.succeed("merge --model model --adapter run --out merged --dtype f32 --json"))
            .unwrap();
    assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
    shell.succeed("merge --model model --adapter run --out same");
    let [before, merged] = ["model", "same"].map(|of| Reference::read(&shell.path(of).join("model.safetensors")));
    for name in before.names() {
        assert_eq!(merged.shape(name), before.shape(name), "{name}");
        assert_eq!(merged.get(name) == before.get(name), !name.contains("_proj") || name.contains(".mlp."), "{name}");
    }
    // A 4-bit directory trains as the model quantized while loading, with and without double quantization.
    for (name, form) in [("nested", ""), ("plain", "--no-double-quant")] {
        shell.succeed(&format!("quantize --model model --out {name} {form}"));
        let held = Reference::read(&shell.path(name).join("model.safetensors"));
        for tensor in ["experts.11.gate_proj", "experts.0.down_proj"] {
            assert!(held.names().any(|name| name == format!("model.layers.2.mlp.{tensor}.weight.absmax")), "{tensor}");
        }
        assert_eq!(held.shape("model.layers.2.mlp.gate.weight"), [12, 32]);
        shell.succeed(&format!("train --model {name} --out {name}-run {RUN} {form}"));
        shell.succeed(&format!("train --model model --out {name}-twin {RUN} {form}"));
        let [run, twin] = ["run", "twin"].map(|of| shell.read(&format!("{name}-{of}/adapter_model.safetensors")));
        assert!(run == twin, "{name}: the adapters differ");
    }
}

#[test]
fn experts_of_lfm2_are_kept_and_quantized() {
    let shell = Shell::with_model("lfm2_moe");
    shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
    shell.assert_adapts_as_peft("lfm2_moe");
    let [before, _] = shell.merged();
    shell.succeed("merge --model model --adapter run --out same");
    let merged = Reference::read(&shell.path("same/model.safetensors"));
    for name in before.names() {
        let linear = ["_proj.", ".feed_forward.w"].iter().any(|part| name.contains(part));
        assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
    }
    let held = shell.assert_quantized_directory_trains_alike(RUN);
    assert!(held.names().any(|name| name == "model.layers.3.feed_forward.experts.8.w2.weight.absmax"));
    assert_eq!(held.shape("model.layers.1.feed_forward.gate.weight"), [9, 32]);
    let bias = "model.layers.1.feed_forward.expert_bias";
    assert_eq!(held.get(bias), before.get(bias));
    let says = ["model.layers.1.feed_forward.gate", "not a linear layer"];
    shell.fail(&format!("train --model model --out other {RUN} --target-modules q_proj,gate"), &says);
}

#[test]
fn experts_of_gpt_oss_stay_as_they_are() {
    for model in ["gpt_oss", "gpt_oss_mxfp4"] {
        let shell = Shell::with_model(model);
        shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
        shell.assert_adapts_as_peft(model);
        let [before, merged] = shell.merged();
        for name in before.names().filter(|name| name.contains(".experts.")) {
            assert_eq!(merged.get(name), before.get(name), "{name}");
        }
        let config = |of: &str| crate::common::json(&shell.path(of).join("config.json"));
        assert_eq!(config("merged")["quantization_config"], config("model")["quantization_config"]);
        shell.fail("quantize --model model --out nf4", &["experts of a layer as one tensor", "--quant nf4"]);
    }
}

#[test]
fn experts_in_mxfp4_are_kept_or_quantized_anew() {
    let shell = Shell::with_model("gpt_oss_mxfp4");
    shell.succeed(&format!("train --model model --out run {RUN} --quant keep"));
    let loss = |quant: &str| -> f64 {
        let eval = format!("eval --model model --data data.jsonl --adapter run --json --quant {quant}");
        serde_json::from_str::<serde_json::Value>(&shell.succeed(&eval)).unwrap()["loss"].as_f64().unwrap()
    };
    let [kept, decoded, anew] = ["keep", "none", "nf4"].map(loss);
    assert!((kept / decoded - 1.0).abs() < 1e-5, "{kept} and {decoded}");
    assert!((anew / decoded - 1.0).abs() < 0.5 && anew != decoded, "{anew} and {decoded}");
    let bytes = |form: &str| -> u64 {
        let estimate = format!("estimate --gpu 0 --model model --max-seq-len 32 --json --method {form}");
        serde_json::from_str::<serde_json::Value>(&shell.succeed(&estimate)).unwrap()[0]["gpu_bytes"].as_u64().unwrap()
    };
    assert!(bytes("qlora --quant keep") < bytes("lora"));
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    let shell = Shell::with_model("qwen3_moe");
    shell.succeed(&format!("train --model model --out run {RUN} --save-every 3"));
    std::fs::remove_dir_all(shell.path("run/checkpoints/step-6")).unwrap();
    std::fs::rename(shell.path("run"), shell.path("whole")).unwrap();
    shell.succeed("train --resume whole --out again");
    shell.assert_same_adapter("resumed", ["whole", "again"]);
}

#[test]
fn what_experts_cannot_do_says_so() {
    let shell = Shell::with_model("qwen3_moe");
    let says = ["mlp.experts.0.gate_proj", "only attention can have adapters"];
    shell.fail(&format!("train --model model --out run {RUN} --target-modules q_proj,gate_proj"), &says);
    let says = ["experts", "cannot be trained themselves; take --method lora or --method qlora"];
    shell.fail("train --model model --method full --out run --data data.jsonl", &says);
    let config = ModelConfig::from_dir(&fixture("qwen3_moe")).unwrap();
    assert_eq!(tensors(&config).len(), 3 + 3 * 8 + 3 + 2 * (1 + 3 * 12));
}
