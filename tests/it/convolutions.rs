//! Models with short convolutions, through the CLI: every way to train them, and the files that come out.

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

/// A convolution that reached over the start of a sequence would see the one before it.
#[test]
fn packing_and_recomputation_change_no_result() {
    let shell = shell("lfm2");
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
    let shell = shell("lfm2_old_keys");
    shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
    let of_peft = Reference::read(&fixture("lfm2_old_keys").join("adapter/adapter_model.safetensors"));
    let mut names: Vec<_> = shell.adapter("run").names().map(str::to_owned).collect();
    let mut expected: Vec<_> = of_peft.names().map(str::to_owned).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    let report: serde_json::Value =
        serde_json::from_str(&shell.succeed("merge --model model --adapter run --out merged --dtype f32 --json"))
            .unwrap();
    assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
    let [before, merged] = ["model", "merged"].map(|of| Reference::read(&shell.path(of).join("model.safetensors")));
    for name in before.names() {
        assert_eq!(merged.shape(name), before.shape(name), "{name}");
        let linear = ["_proj.", ".w1.", ".w2.", ".w3."].iter().any(|part| name.contains(part));
        assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
    }
    assert_eq!(before.names().count(), merged.names().count());
    // A 4-bit directory trains as the model quantized while loading.
    shell.succeed("quantize --model model --out nf4");
    let held = Reference::read(&shell.path("nf4/model.safetensors"));
    assert!(held.names().any(|name| name == "model.layers.1.conv.in_proj.weight.absmax"));
    assert_eq!(held.shape("model.layers.1.conv.conv.weight"), [36, 1, 5]);
    shell.succeed(&format!("train --model nf4 --out run4 {RUN}"));
    shell.succeed(&format!("train --model model --out twin4 {RUN}"));
    let [run, twin] = ["run4", "twin4"].map(|of| shell.read(&format!("{of}/adapter_model.safetensors")));
    assert!(run == twin, "the adapters differ");
}

#[test]
fn what_convolutions_cannot_do_says_so() {
    let shell = shell("lfm2");
    let says = ["model.layers.0.conv", "not a linear layer"];
    shell.fail(&format!("train --model model --out run {RUN} --target-modules q_proj,conv"), &says);
    let says = ["matches no module", "in_proj", "model.layers.0.conv.in_proj"];
    shell.fail(&format!("train --model model --out run {RUN} --target-modules up_proj"), &says);
}
