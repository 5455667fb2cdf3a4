//! Models with short convolutions, through the CLI: every way to train them, and the files that come out.

use crate::common::cli::Shell;

const ALONE: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2";
const RUN: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 1e-2 --batch-size 4";

/// A convolution that reached over the start of a sequence would see the one before it.
#[test]
fn packing_and_recomputation_change_no_result() {
    Shell::with_model("lfm2").assert_packing_and_recomputation_change_nothing(ALONE);
}

#[test]
fn every_linear_layer_is_adapted_and_merged() {
    let shell = Shell::with_model("lfm2_old_keys");
    shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
    shell.assert_adapts_as_peft("lfm2_old_keys");
    let [before, merged] = shell.merged();
    for name in before.names() {
        let linear = ["_proj.", ".w1.", ".w2.", ".w3."].iter().any(|part| name.contains(part));
        assert_eq!(merged.get(name) == before.get(name), !linear, "{name}");
    }
    // A 4-bit directory trains as the model quantized while loading.
    let held = shell.assert_quantized_directory_trains_alike(RUN);
    assert!(held.names().any(|name| name == "model.layers.1.conv.in_proj.weight.absmax"));
    assert_eq!(held.shape("model.layers.1.conv.conv.weight"), [36, 1, 5]);
}

#[test]
fn what_convolutions_cannot_do_says_so() {
    let shell = Shell::with_model("lfm2");
    let says = ["model.layers.0.conv", "not a linear layer"];
    shell.fail(&format!("train --model model --out run {RUN} --target-modules q_proj,conv"), &says);
    let says = ["matches no module", "in_proj", "model.layers.0.conv.in_proj"];
    shell.fail(&format!("train --model model --out run {RUN} --target-modules up_proj"), &says);
}
