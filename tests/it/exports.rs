//! Merged and 4-bit model directories, through the CLI.

use crate::common::cli::{Shell, copy_files, random_lines, train_on};
use crate::common::{Reference, fixture, shared};
use serde_json::Value;

/// A shell with a model of 96 tokens in `model`, and data for it.
fn shell() -> Shell {
    let shell = Shell::new();
    copy_files(&fixture("llama_tied"), &shell.path("model"));
    shell.write("data.jsonl", random_lines(24, 96, 7));
    shell
}

const RUN: &str = "--data data.jsonl --steps 6 --rank 4 --alpha 16 --lr 2e-2 --batch-size 4";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn loss(shell: &Shell, args: &str) -> f64 {
    json(&shell.succeed(&format!("eval {args} --data data.jsonl --json")))["loss"].as_f64().expect("a loss")
}

#[test]
fn a_4_bit_directory_trains_as_its_model_quantized_while_loading() {
    let shell = shell();
    for (name, form) in [("nf4", ""), ("plain", "--no-double-quant"), ("fp4", "--quant fp4")] {
        shell.succeed(&format!("quantize --model model --out {name} {form}"));
        shell.succeed(&format!("train --model {name} --out {name}-run {RUN} {form}"));
        shell.succeed(&format!("train --model model --out {name}-twin {RUN} {form}"));
        assert_eq!(shell.losses(&format!("{name}-run")), shell.losses(&format!("{name}-twin")), "{name}");
        let [run, twin] = ["run", "twin"].map(|of| shell.read(&format!("{name}-{of}/adapter_model.safetensors")));
        assert!(run == twin, "{name}: the adapters differ");
    }
    assert_ne!(shell.losses("nf4-run"), shell.losses("fp4-run"));
    shell.fail(&format!("train --model fp4 --out again {RUN}"), &["in another form", "take --quant fp4"]);
}

#[test]
fn a_4_bit_directory_holds_bitsandbytes_bytes() {
    let (Some(model), Some(reference)) =
        (shared("models/stories260K"), shared("reference/nf4_stories260K_layer0.safetensors"))
    else {
        return;
    };
    let shell = Shell::new();
    shell.succeed(&format!("quantize --model {} --out nf4", model.display()));
    let reference = Reference::read(&reference);
    let ours = Reference::read(&shell.path("nf4/model.safetensors"));
    for module in ["self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj"] {
        let name = format!("model.layers.0.{module}.weight");
        assert_eq!(ours.bytes(&name), reference.bytes(&format!("{name}.dq1.packed")), "{name}");
        assert_eq!(ours.bytes(&format!("{name}.absmax")), reference.bytes(&format!("{name}.dq1.absmax")), "{name}");
        let nested = ours.bytes(&format!("{name}.nested_absmax"));
        assert_eq!(nested, reference.bytes(&format!("{name}.dq1.absmax2")), "{name}");
    }
}

#[test]
fn large_models_are_written_in_shards_that_hold_the_same() {
    let shell = shell();
    for (command, made) in [("merge --adapter run", "merged"), ("quantize", "nf4")] {
        if made == "merged" {
            shell.succeed(&format!("train --model model --out run {RUN}"));
        }
        shell.succeed(&format!("{command} --model model --out {made}"));
        shell.succeed(&format!("{command} --model model --out {made}-cut --max-shard-size 16kB"));
        assert!(shell.names(made).contains(&"model.safetensors".to_owned()));
        let names = shell.names(&format!("{made}-cut"));
        let shards: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
        assert!(shards.len() > 2, "{names:?}");
        assert_eq!(*shards[0], format!("model-00001-of-{:05}.safetensors", shards.len()));
        for shard in &shards {
            let bytes = shell.read(&format!("{made}-cut/{shard}"));
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert!(bytes.len() - 8 - header <= 16_000, "{shard}");
        }
        let index = json(&String::from_utf8(shell.read(&format!("{made}-cut/model.safetensors.index.json"))).unwrap());
        let whole = Reference::read(&shell.path(made).join("model.safetensors"));
        let map = index["weight_map"].as_object().unwrap();
        assert_eq!(map.len(), whole.names().count());
        for (name, shard) in map {
            let part = Reference::read(&shell.path(&format!("{made}-cut")).join(shard.as_str().unwrap()));
            assert_eq!(part.bytes(name), whole.bytes(name), "{name}");
        }
        assert_eq!(loss(&shell, &format!("--model {made}-cut")), loss(&shell, &format!("--model {made}")));
    }
}

#[test]
fn a_merged_model_answers_as_base_and_adapter() {
    let shell = shell();
    shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
    let report = json(&shell.succeed("merge --model model --adapter run --out merged --json"));
    assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
    assert_eq!(report["dequantized"], false, "{report}");
    let [base, adapter, merged] =
        ["--model model", "--model model --adapter run", "--model merged"].map(|args| loss(&shell, args));
    assert!((base - adapter).abs() > 1e-2, "the adapter must matter: {base} {adapter}");
    assert!((adapter - merged).abs() < 1e-5 * adapter, "{adapter} {merged}");
}

/// In a model with a vision tower, the tensors beside the text decoder stay as they are, under their own names.
#[test]
fn the_other_parts_of_a_model_are_kept_byte_for_byte() {
    for (name, decoder) in [("gemma3_vision", "language_model.model"), ("qwen3_vl", "model.language_model")] {
        let shell = Shell::new();
        copy_files(&fixture(name), &shell.path("model"));
        shell.write("data.jsonl", random_lines(24, 96, 7));
        let shown = shell.succeed(&format!("train --model model --method lora --out run {RUN}"));
        assert!(shown.contains("the text decoder of a "), "{shown}");
        let config = json(&String::from_utf8(shell.read("run/adapter_config.json")).unwrap());
        let targets = config["target_modules"].as_str().expect("one expression");
        assert!(targets.starts_with(r"model\.language_model\.layers\.(?:0|1"), "{targets}");
        let adapter = shell.adapter("run");
        assert!(adapter.names().all(|name| name.starts_with("base_model.model.model.language_model.layers.")));

        let report = json(&shell.succeed("merge --model model --adapter run --out merged --json"));
        assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
        shell.succeed("quantize --model model --out nf4");
        let before = Reference::read(&shell.path("model/model.safetensors"));
        let [merged, nf4] = ["merged", "nf4"].map(|made| Reference::read(&shell.path(made).join("model.safetensors")));
        let names = |of: &Reference| of.names().map(str::to_owned).collect::<std::collections::BTreeSet<String>>();
        assert_eq!(names(&merged), names(&before), "{name}");
        let (mut kept, mut changed) = (0, 0);
        for tensor in before.names() {
            let projection = tensor.starts_with(&format!("{decoder}.layers.")) && tensor.ends_with("_proj.weight");
            assert_eq!(merged.get(tensor) == before.get(tensor), !projection, "{tensor}");
            assert_eq!(nf4.get(tensor) == before.get(tensor), !projection, "{tensor}");
            (kept, changed) = (kept + usize::from(!projection), changed + usize::from(projection));
        }
        assert!(kept > 20 && changed >= 14, "{kept} {changed}");
        let config = json(&String::from_utf8(shell.read("nf4/config.json")).unwrap());
        let skipped = config["quantization_config"]["llm_int8_skip_modules"].to_string();
        assert!(skipped.contains(if name == "qwen3_vl" { "model.visual" } else { "model.vision_tower" }), "{skipped}");
        shell.fail("train --model model --method full --out full --data data.jsonl", &["--method", "text part"]);
    }
}

/// Linear layers that are one tensor in the files are trained and written as one.
#[test]
fn fused_layers_stay_fused_in_every_file() {
    for (name, fused) in
        [("phi3", "self_attn.qkv_proj"), ("glm4", "mlp.gate_up_proj"), ("granite4", "shared_mlp.input_linear")]
    {
        let shell = Shell::new();
        copy_files(&fixture(name), &shell.path("model"));
        shell.write("data.jsonl", random_lines(24, 96, 7));
        shell.succeed(&format!("train --model model --method lora --out run {RUN} --save-every 3"));
        let adapter = shell.adapter("run");
        let [rows, columns] =
            *Reference::read(&shell.path("model/model.safetensors")).shape(&format!("model.layers.0.{fused}.weight"))
        else {
            panic!("{fused} is no matrix")
        };
        for (factor, shape) in [("A", [4, columns]), ("B", [rows, 4])] {
            let name = format!("base_model.model.model.layers.0.{fused}.lora_{factor}.weight");
            assert_eq!(adapter.shape(&name), shape, "{name}");
        }
        assert!(!adapter.names().any(|name| name.contains("gate_proj")), "{name}");

        let report = json(&shell.succeed("merge --model model --adapter run --out merged --json"));
        assert!(report["relative_logit_error"].as_f64().unwrap() < 1e-5, "{report}");
        let [before, merged] =
            ["model", "merged"].map(|made| Reference::read(&shell.path(made).join("model.safetensors")));
        for tensor in before.names() {
            assert_eq!(merged.shape(tensor), before.shape(tensor), "{tensor}");
        }

        // A 4-bit file of the fused tensors trains as the model quantized while loading.
        let form = "--no-double-quant";
        shell.succeed(&format!("quantize --model model --out nf4 {form}"));
        let whole = format!("model.layers.0.{fused}.weight.absmax");
        assert!(Reference::read(&shell.path("nf4/model.safetensors")).names().any(|name| name == whole), "{whole}");
        shell.succeed(&format!("train --model nf4 --out nf4-run {RUN} {form}"));
        shell.succeed(&format!("train --model model --out nf4-twin {RUN} {form}"));
        let [run, twin] = ["run", "twin"].map(|of| shell.read(&format!("nf4-{of}/adapter_model.safetensors")));
        assert!(run == twin, "{name}: the adapters differ");

        // Resuming takes up the one A and its moments.
        std::fs::remove_dir_all(shell.path("run/checkpoints/step-6")).unwrap();
        std::fs::rename(shell.path("run"), shell.path("whole")).unwrap();
        shell.succeed("train --resume whole --out again");
        shell.assert_same_adapter(name, ["whole", "again"]);
    }
    let shell = Shell::new();
    copy_files(&fixture("phi3"), &shell.path("model"));
    shell.write("data.jsonl", random_lines(24, 96, 7));
    let shown =
        shell.succeed(&format!("train --model model --out run --target-modules q_proj,o_proj {RUN} --method lora"));
    assert!(shown.contains("names q_proj, which this model does not have; only o_proj are trained"), "{shown}");
    shell.fail(
        &format!("train --model model --out other --target-modules q_proj {RUN}"),
        &["qkv_proj, o_proj, gate_up_proj"],
    );
}

#[test]
fn merging_into_a_4_bit_base_says_that_it_was_decoded() {
    let shell = shell();
    shell.succeed("quantize --model model --out nf4");
    shell.succeed(&format!("train --model nf4 --out run {RUN}"));
    let shown = shell.succeed("merge --model nf4 --adapter run --out merged --dtype f32");
    assert!(shown.contains("the base was in 4 bits and was decoded first"), "{shown}");
    let [adapter, merged] = ["--model nf4 --adapter run", "--model merged"].map(|args| loss(&shell, args));
    assert!((adapter - merged).abs() < 1e-4 * adapter, "{adapter} {merged}");
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let shell = shell();
    shell.succeed("quantize --model model --out nf4");
    let before = shell.read("nf4/model.safetensors");
    shell.fail("quantize --model model --out nf4", &["nf4", "exists already", "--overwrite"]);
    shell.fail("quantize --model model --out model", &["is the model's own directory"]);
    shell.fail("quantize --model nf4 --out again", &["nf4"]);
    shell.fail("merge --model model --adapter absent --out merged", &["absent"]);
    shell.fail(&format!("train --model nf4 --method lora --out run {RUN}"), &["4 bits"]);
    assert_eq!(before, shell.read("nf4/model.safetensors"));
    assert_eq!(shell.names("."), ["data.jsonl", "model", "nf4"]);
    shell.succeed("quantize --model model --out nf4 --overwrite");
    assert_eq!(before, shell.read("nf4/model.safetensors"));
}

#[test]
fn tensorboard_files_hold_the_run() {
    let shell = shell();
    shell.succeed(&format!("{} --out run {RUN} --tensorboard", train_on("llama_tied")));
    let events: Vec<String> =
        shell.names("run").into_iter().filter(|name| name.starts_with("events.out.tfevents.")).collect();
    let [events] = &events[..] else { panic!("{events:?}") };
    let bytes = shell.read(&format!("run/{events}"));
    let held = |text: &str| bytes.windows(text.len()).filter(|window| window == &text.as_bytes()).count();
    assert!(held("loss") >= 6, "a loss for every step");
}

#[test]
fn completions_know_the_commands() {
    for shell_name in ["bash", "zsh", "fish"] {
        let script = Shell::new().succeed(&format!("completions {shell_name}"));
        assert!(["train", "inspect", "--model"].iter().all(|word| script.contains(word.trim_start_matches('-'))));
    }
}

#[cfg(unix)]
#[test]
fn no_link_leads_into_an_export_or_through_one() {
    use std::os::unix::fs::symlink;
    let shell = shell();
    shell.write("secret", "a key");
    shell.write("victim", "precious");
    shell.succeed(&format!("train --model model --out run {RUN}"));
    symlink("../secret", shell.path("model/added_tokens.json")).unwrap();
    let commands = ["quantize --model model --out made", "merge --model model --adapter run --out made"];
    for command in commands {
        shell.fail(command, &["model/added_tokens.json", "is a link to", "secret", "outside the model's directory"]);
        assert!(!shell.path("made").exists());
    }
    shell
        .fail("train --model model --method full --out full --data data.jsonl", &["added_tokens.json", "is a link to"]);

    // The cache of a hub is made of links into its own store.
    let cached = "models--a--b/snapshots/0123";
    copy_files(&fixture("llama_tied"), &shell.path("models--a--b/blobs"));
    std::fs::create_dir_all(shell.path(cached)).unwrap();
    for name in shell.names("models--a--b/blobs") {
        symlink(format!("../../blobs/{name}"), shell.path(&format!("{cached}/{name}"))).unwrap();
    }
    // Links at the places of temporary files lead to no file of others.
    for place in [".made.part", ".made.loraine.lock"] {
        symlink("victim", shell.path(place)).unwrap();
    }
    shell.fail(&format!("quantize --model {cached} --out made"), &["made"]);
    std::fs::remove_file(shell.path(".made.loraine.lock")).unwrap();
    shell.succeed(&format!("quantize --model {cached} --out made"));
    std::fs::create_dir(shell.path("planted")).unwrap();
    for name in ["metrics.jsonl", ".run.toml.part", ".adapter_model.safetensors.part"] {
        symlink("../victim", shell.path(&format!("planted/{name}"))).unwrap();
    }
    std::fs::remove_file(shell.path("model/added_tokens.json")).unwrap();
    shell.succeed(&format!("train --model model --out planted {RUN} --overwrite"));
    assert_eq!(shell.read("victim"), b"precious");
    assert!(!shell.path("planted/metrics.jsonl").is_symlink());
}
