//! Everything that a user, a broken download or a hostile file can get wrong: one error that says what would be right,
//! and an output directory that holds nothing half-written.

use std::path::Path;
use std::process::Command;

use crate::attacks::{self, Weights};
use crate::common::cli::{Shell, assert_fails, copy_files, edit, random_lines, texts};
use crate::common::fixture;
use serde_json::json;

/// A shell with a model of 96 tokens and 128 positions, in `model`, and data for it.
fn shell() -> Shell {
    let shell = Shell::new();
    copy_files(&fixture("llama_tied"), &shell.path("model"));
    shell.write("data.jsonl", random_lines(8, 96, 1));
    shell
}

const TRAIN: &str = "train --model model --data data.jsonl --out run --steps 2";

/// A training run with `args` fails and leaves no output directory.
fn refuses(shell: &Shell, args: &str, says: &[&str]) {
    shell.fail(&format!("{TRAIN} {args}"), says);
    assert_eq!(shell.names("run"), [""; 0], "{args}");
    let left: Vec<String> = shell.names(".").into_iter().filter(|name| name.ends_with(".part")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn damaged_and_hostile_weights() {
    let shell = shell();
    let weights = shell.path("model/model.safetensors");
    let attacks = attacks::on_weights(&weights);
    assert!(attacks.len() > 25);
    for attack in &attacks {
        std::fs::write(&weights, &attack.bytes).unwrap();
        println!("{}", attack.what);
        let says = [&["model.safetensors"], attack.says].concat();
        refuses(&shell, "", &says);
        refuses(&shell, "--method lora", &says);
    }
    std::fs::remove_file(&weights).unwrap();
    refuses(&shell, "", &["model: holds neither model.safetensors nor model.safetensors.index.json"]);
    shell.write("model/pytorch_model.bin", "");
    refuses(&shell, "", &["pytorch_model.bin is not read, convert it: python -c"]);
}

#[test]
fn an_index_stays_in_its_directory() {
    let shell = shell();
    copy_files(&fixture("llama_untied"), &shell.path("model"));
    std::fs::remove_file(shell.path("model/model.safetensors")).unwrap();
    std::fs::copy(fixture("llama_tied/model.safetensors"), shell.path("x.safetensors")).unwrap();
    let index = shell.path("model/model.safetensors.index.json");
    let good = std::fs::read(&index).unwrap();
    let with_shard = |shard: &str, says: &[&str]| {
        let mut index: serde_json::Value = serde_json::from_slice(&good).unwrap();
        index["weight_map"][attacks::VICTIM] = json!(shard);
        shell.write("model/model.safetensors.index.json", index.to_string());
        refuses(&shell, "", says);
    };
    let absolute = shell.path("x.safetensors").display().to_string();
    for outside in ["../x.safetensors", "..\\x.safetensors", "./../x.safetensors", &absolute] {
        with_shard(outside, &["index.json", attacks::VICTIM, "must name a .safetensors file beside the index"]);
    }
    with_shard("absent.safetensors", &["model/absent.safetensors: cannot be read"]);
    with_shard("model-00002-of-00002.safetensors", &[attacks::VICTIM, "is not in `model-00002-of-00002.safetensors`"]);
    shell.write("model/model.safetensors.index.json", "{}");
    refuses(&shell, "", &["index.json: `weight_map`: is missing"]);
}

#[test]
fn models_that_are_none_or_of_another_kind() {
    let shell = shell();
    shell.fail("train --model nowhere --data data.jsonl --out run", &["nowhere: does not exist"]);
    let good = shell.read("model/config.json");
    let cases = [
        ("model_type", json!("mamba"), "`mamba` is not supported: it has Mamba layers"),
        ("model_type", json!("new_family"), "`new_family` is not supported; supported are LlamaForCausalLM"),
        ("architectures", json!(["FalconForCausalLM"]), "`FalconForCausalLM` is not supported; supported are"),
        ("hidden_size", json!(64), "has shape [96, 32], but config.json asks for [96, 64]"),
        ("hidden_size", json!(0), "`hidden_size`: is 0, but must be a whole number in 1..="),
        ("hidden_size", json!("32"), "`hidden_size`: is \"32\", but must be a whole number"),
        ("num_hidden_layers", json!(3), "`model.layers.2."),
        ("num_hidden_layers", json!(1), "`model.layers.1."),
        ("num_hidden_layers", json!(4_000_000_000u64), "`num_hidden_layers`"),
        ("num_attention_heads", json!(3), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "`num_key_value_heads`: is 3, which does not divide"),
        ("rms_norm_eps", json!(-1.0), "`rms_norm_eps`: is -1.0, but must be a number above 0"),
        ("hidden_act", json!("relu2"), "only `silu`"),
        ("tie_word_embeddings", json!(false), "`lm_head.weight`: is missing"),
        ("attention_bias", json!(true), "q_proj.bias`: is missing"),
        ("quantization_config", json!({"quant_method": "gptq"}), "already quantized (gptq)"),
        ("rope_scaling", json!({"rope_type": "wavy", "factor": 2.0}), "wavy"),
    ];
    for (key, value, says) in cases {
        let mut config: serde_json::Value = serde_json::from_slice(&good).unwrap();
        config[key] = value;
        shell.write("model/config.json", config.to_string());
        refuses(&shell, "", &["model/", says]);
    }
    for (text, says) in [("", "is not valid JSON"), ("[1]", "one JSON object"), ("{\"a\": 1", "is not valid JSON")] {
        shell.write("model/config.json", text);
        refuses(&shell, "", &["model/config.json", says]);
    }
}

#[test]
fn tokenizers_that_disagree_with_the_model() {
    let shell = shell();
    shell.write("data.jsonl", "{\"text\": \"w3 w4 w5\"}\n");
    refuses(&shell, "", &["data.jsonl", "tokenizer.json is missing"]);
    shell.write("model/tokenizer.json", attacks::tokenizer(97));
    shell.write("data.jsonl", "{\"text\": \"w3 w4 w5\"}\n{\"text\": \"w3 w96\"}\n");
    refuses(
        &shell,
        "",
        &["data.jsonl, line 2: model/tokenizer.json: gives the text the token `w96` (96)", "has 96 rows"],
    );
    shell.write("data.jsonl", "{\"text\": \"w3 w4 w5\"}\n");
    shell.write("model/tokenizer.json", "{\"model\": 3}");
    refuses(&shell, "", &["model/tokenizer.json: is not a tokenizer that can be read"]);
    shell.write("model/tokenizer.json", attacks::tokenizer(96));
    shell.write("model/tokenizer_config.json", "{\"eos_token\": \"</s>\"}");
    refuses(&shell, "", &["model/tokenizer_config.json: `eos_token`: is `</s>`, which tokenizer.json does not have"]);
    shell.write("model/tokenizer_config.json", "{\"eos_token\": \"w1\"}");
    shell.succeed(TRAIN);
}

#[test]
fn data_that_cannot_be_trained_on() {
    let shell = shell();
    let many = json!({ "input_ids": vec![1; 129] }).to_string();
    let cases: [(&str, &[&str]); 12] = [
        ("", &["bad.jsonl: holds no example: it is empty"]),
        ("\n  \n", &["bad.jsonl: holds no example: it is empty"]),
        ("{\"input_ids\": [1, 2]", &["bad.jsonl, line 1: is not valid JSON"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1]}", &["line 1", "has 2 input_ids but 1 labels"]),
        ("{\"input_ids\": [1, 96]}", &["line 1", "has 96 at element 1, but the vocabulary ends at 95"]),
        ("{\"input_ids\": [-1, 2]}", &["line 1", "has -1 at element 0"]),
        ("{\"input_ids\": [1e99, 2]}", &["line 1", "list of whole numbers"]),
        ("{\"input_ids\": [1, 2], \"labels\": [-100, -100]}", &["line 1", "has no token to train on"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, -100]}", &["line 1", "has no token to train on"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, 3]}", &["line 1", "must have -100 or the token there, 2"]),
        ("{\"words\": []}", &["line 1", "fields [words]", "supported are"]),
        (&many, &["longer than 128 tokens, the longest has 129 (line 1)"]),
    ];
    for (content, says) in cases {
        shell.write("bad.jsonl", content);
        for command in ["train --out run", "eval"] {
            shell.fail(&format!("{command} --model model --data bad.jsonl"), says);
        }
        shell.fail(&format!("{TRAIN} --eval-data bad.jsonl"), says);
        assert_eq!(shell.names("run"), [""; 0]);
    }
    refuses(&shell, "--max-seq-len 5", &["8 of 8 examples are longer than 5 tokens", "--max-seq-len to"]);
    shell.write("bad.csv", "1,2");
    shell.fail("train --model model --out run --data bad.csv", &["bad.csv: holds no example"]);
    shell.write("bad.xlsx", "PK");
    shell.fail("train --model model --out run --data bad.xlsx", &["bad.xlsx", "supported are .jsonl, .json, .csv"]);
    shell.fail("train --model model --out run --data gone.jsonl", &["gone.jsonl: cannot be read"]);
    std::fs::create_dir(shell.path("empty")).unwrap();
    shell.fail("train --model model --out run --data empty", &["empty: holds no "]);
    shell.fail("eval --model model --data empty", &["empty: holds no file for evaluation, such as test.jsonl"]);
}

/// Templates that the limit on instructions does not stop; tests/it/hostile_files.rs has the others.
#[test]
fn a_template_without_end_ends_the_program() {
    let shell = shell();
    shell.write("model/tokenizer.json", attacks::tokenizer(96));
    shell.write("model/tokenizer_config.json", "{\"eos_token\": \"w1\"}");
    shell.write("data.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"w2\"}]}");
    // The engine counts the length of texts and lists among the instructions, and refuses these itself.
    let doubled = "{% set n = namespace(x='w3') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    shell.write("doubled.jinja", doubled);
    refuses(&shell, "--chat-template doubled.jinja", &["data.jsonl, line 1: doubled.jinja: runs without end"]);
    shell.write("joined.jinja", "{{ (['w3'] * 10 ** 9)|join|length }}");
    refuses(&shell, "--chat-template joined.jinja", &["the chat template refuses it: repeated sequence is too large"]);
    // It does not count the parts of a list that holds itself twice, many times over.
    let nested = |start: &str, times: u32, end: &str| {
        let twice = "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}";
        format!(
            "{{% set n = namespace(x={start}, y={start}) %}}{{% for i in range({times}) %}}{twice}{{% endfor %}}{end}"
        )
    };
    if cfg!(target_os = "linux") {
        shell.write("memory.jinja", nested("'w3' * 100000", 20, "{{ n.x|string|length }}"));
        refuses(&shell, "--chat-template memory.jinja", &["the chat template takes more than 512 MiB of memory"]);
    }
    shell.write("endless.jinja", nested("1", 40, "{{ n.x == n.y }}"));
    refuses(&shell, "--chat-template endless.jinja", &["the chat template runs without end: 20 s"]);
}

#[test]
fn settings_that_cannot_work() {
    let shell = shell();
    let cases: [(&str, &[&str]); 24] = [
        ("--rank 0", &["--rank is 0; it must be at least 1"]),
        ("--rank 70000", &["is 70000, but must be in 1..=65536"]),
        ("--alpha 0", &["--alpha is 0; it must be a positive number"]),
        ("--alpha inf", &["--alpha is inf"]),
        ("--dropout 1", &["--dropout is 1; it must be at least 0 and below 1"]),
        ("--batch-size 0", &["--batch-size is 0; it must be at least 1"]),
        ("--grad-accum 0", &["--grad-accum is 0"]),
        ("--steps 0", &["--steps is 0"]),
        ("--lr 0", &["--lr is 0; it must be a positive number"]),
        ("--lr nan", &["--lr is NaN"]),
        ("--max-grad-norm -1", &["--max-grad-norm is -1"]),
        ("--log-every 0", &["--log-every is 0"]),
        ("--seed 18446744073709551615", &["--seed is 18446744073709551615; it must be at most 9223372036854775807"]),
        ("--max-seq-len 1", &["--max-seq-len is 1; it must be at least 2"]),
        ("--max-seq-len 129", &["--max-seq-len is 129, but the model has 128 positions"]),
        ("--eval-fraction 1", &["--eval-fraction is 1"]),
        ("--target-modules c_attn", &["--target-modules (c_attn) matches no module", "q_proj, k_proj", "down_proj"]),
        ("--target-modules q_proj,lm_head --use-dora", &["lm_head", "magnitudes (DoRA) are not supported there"]),
        ("--target-modules lm_head --modules-to-save lm_head", &["lm_head is chosen twice", "--modules-to-save"]),
        ("--modules-to-save q_proj", &["--modules-to-save is q_proj", "embed_tokens, lm_head or both"]),
        (
            "--trainable-token-indices 1,99999",
            &["--trainable-token-indices has 99999", "the tokens of this model are 0 to"],
        ),
        ("--target-modules ((", &["`((` is not a regular expression"]),
        ("--target-modules ,", &["--target-modules"]),
        ("--resume", &["run: holds no checkpoint to resume from"]),
    ];
    for (args, says) in cases {
        shell.fail(&format!("train --model model --data data.jsonl --out run {args}"), says);
        assert_eq!(shell.names("run"), [""; 0], "{args}");
    }
    shell.fail("eval --model model --data data.jsonl --batch-size 0", &["--batch-size is 0"]);
    for missing in ["--model", "--data", "--out"] {
        let flags = ["--model", "model", "--data", "data.jsonl", "--out", "run"];
        let kept: Vec<_> = flags.chunks(2).filter(|flag| flag[0] != missing).flatten().copied().collect();
        shell.fail(&format!("train {}", kept.join(" ")), &[&format!("{missing} is missing")]);
    }
}

#[test]
fn words_that_the_command_line_does_not_know() {
    let shell = shell();
    for args in [
        "train --rnak 3",
        "train --rank three",
        "train --method full-speed",
        "train --steps 3 --epochs 2",
        "train --overwrite --resume",
        "train --gpu-memory 12parsecs",
        "eval --model model",
        "trian",
    ] {
        let output = shell.command(args).output().unwrap();
        let (_, problems) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{args}: {problems}");
        assert!(problems.starts_with("error: ") && problems.contains("--help"), "{args}: {problems}");
    }
}

#[test]
fn settings_files_that_cannot_be_used() {
    let shell = shell();
    for (text, says) in [
        ("rnak = 3", "`rnak` is not a setting; the nearest is `rank`"),
        ("evel_every = 3", "the nearest is `eval-every`"),
        ("load_in_8bit = true", "`load_in_8bit` is not a setting of loraine: there is no 8-bit base"),
        ("[lora]\nrank = 3", "`lora` is not a setting"),
        ("rank = \"three\"", "three"),
        ("rank = -3", "rank"),
        ("method = \"fast\"", "fast"),
        ("rank = 3\nrank = 4", "line 2"),
        ("rank =", "line 1"),
        ("rank = 0", "run.toml: `rank` is 0"),
        ("lr = nan", "run.toml: `lr` is NaN"),
        ("dtype = \"f16\"", "run.toml: `dtype` is for `method = \"full\"`"),
    ] {
        shell.write("run.toml", text);
        refuses(&shell, "--config run.toml", &[says]);
    }
    shell.write("run.toml", "rank = 0");
    refuses(&shell, "--config run.toml --lr 0", &["run.toml: `rank` is 0"]);
    refuses(&shell, "--config run.toml --rank 3 --lr 0", &["error: --lr is 0"]);
    refuses(&shell, "--config gone.toml", &["gone.toml cannot be read"]);
}

#[test]
fn devices_that_are_not_there() {
    let shell = shell();
    refuses(&shell, "--gpu abacus", &["no adapter matches `abacus`; there are: 0: "]);
    refuses(&shell, "--gpu 99", &["no adapter matches `99`; there are: 0: "]);
    if cfg!(target_os = "linux") {
        for args in [TRAIN, "eval --model model --data data.jsonl"] {
            let mut command = shell.command(args);
            command.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent");
            assert_fails(&mut command, args, &["no GPU adapter was found: install a Vulkan, Metal or DX12 driver"]);
            assert_eq!(shell.names("run"), [""; 0]);
        }
    }
}

#[test]
fn memory_that_does_not_suffice_names_the_length_that_fits() {
    let shell = shell();
    let data = |length: usize| {
        let line = format!("{}\n", json!({ "input_ids": vec![7; length] }));
        shell.write("data.jsonl", line.repeat(6));
    };
    let bytes = |text: &str| -> u64 {
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        events.filter_map(|event| event["gpu_bytes"].as_u64()).sum()
    };
    data(128);
    let train = format!("{TRAIN} --recompute all");
    let allowed = bytes(&shell.succeed(&format!("{train} --dry-run --json"))) * 8 / 10;
    let output = shell.command(&format!("{train} --gpu-memory {allowed}B")).output().unwrap();
    let (_, problems) = texts(&output);
    let fits = problems.split_once("sequences of up to ").expect(&problems).1.split_once(' ').unwrap().0;
    let fits: usize = fits.parse().unwrap();
    assert!((16..128).contains(&fits), "{problems}");
    let limited = format!("--recompute all --gpu-memory {allowed}B");
    refuses(&shell, &limited, &[&format!("--gpu-memory allows {}; ", loraine::gpu::readable_bytes(allowed))]);
    data(fits + 1);
    refuses(&shell, &limited, &[&format!("(--max-seq-len {fits})")]);
    data(fits);
    shell.succeed(&format!("{TRAIN} {limited}"));
    assert!(shell.metrics("run")[0]["gpu_bytes"].as_u64().unwrap() <= allowed);

    let shell = self::shell();
    refuses(
        &shell,
        "--gpu-memory 1kB",
        &["--gpu-memory allows 1.00 kB; shorter sequences alone", "lower --batch-size"],
    );
    let all = "--batch-size 9223372036854775807 --gpu-memory 1kB";
    refuses(&shell, all, &["--gpu-memory allows 1.00 kB"]);
}

#[test]
fn adapters_that_do_not_belong_to_the_model() {
    let shell = shell();
    let adapter = shell.path("adapter");
    copy_files(&fixture("llama_tied/adapter"), &adapter);
    let weights = adapter.join("adapter_model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let both = |says: &[&str]| {
        refuses(&shell, "--init-adapter adapter", says);
        shell.fail("eval --model model --data data.jsonl --adapter adapter", says);
    };
    let name = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight";
    let changed = |change: &dyn Fn(&mut Weights)| {
        std::fs::write(&weights, &good).unwrap();
        let mut file = Weights::read(&weights);
        change(&mut file);
        std::fs::write(&weights, file.bytes()).unwrap();
    };
    changed(&|w| w.set(name, 3, f32::NAN));
    both(&["adapter_model.safetensors", name, "NaN at element 3"]);
    changed(&|w| w.header[name]["shape"] = json!([4, 16]));
    both(&[name, "has shape [4, 16]", "ask for [16, 4]"]);
    changed(&|w| {
        let tensor = w.header.remove(name).unwrap();
        w.header.insert("base_model.model.lm_head.lora_B.weight".to_owned(), tensor);
    });
    both(&[name, "is missing"]);
    std::fs::write(&weights, &good[..good.len() - 5]).unwrap();
    both(&["adapter_model.safetensors", "cut short"]);
    std::fs::remove_file(&weights).unwrap();
    both(&["adapter_model.safetensors", "cannot be read"]);
    copy_files(&fixture("odd_sizes/adapter"), &adapter);
    both(&["adapter: was trained on", "this model has width 32"]);
    shell.write("adapter/adapter_config.json", "{\"peft_type\": \"IA3\", \"target_modules\": [\"q_proj\"]}");
    both(&["adapter_config.json", "IA3"]);
    std::fs::remove_file(adapter.join("adapter_config.json")).unwrap();
    both(&["adapter: holds no adapter_config.json; it is not a PEFT adapter"]);
}

#[test]
fn a_directory_with_a_run_is_kept_until_told_otherwise() {
    let shell = shell();
    shell.succeed(&format!("{TRAIN} --save-every 1"));
    shell.write("run/notes.txt", "mine");
    let before = shell.read("run/adapter_model.safetensors");
    let says = ["run: holds another run", "--resume", "--overwrite"];
    shell.fail(&format!("{TRAIN} --seed 1"), &says);
    let (names, metrics) = (shell.names("run"), shell.metrics("run"));

    // What cannot start does not touch it, even where it may be replaced.
    copy_files(&shell.path("model"), &shell.path("broken"));
    let mut weights = Weights::read(&shell.path("model/model.safetensors"));
    weights.set(attacks::VICTIM, 0, f32::NAN);
    shell.write("broken/model.safetensors", weights.bytes());
    shell.fail(&format!("{TRAIN} --model broken --overwrite").replacen("--model model ", "", 1), &["not finite"]);
    shell.fail(&format!("{TRAIN} --overwrite --gpu-memory 1kB"), &["--gpu-memory"]);
    shell.fail(&format!("{TRAIN} --overwrite --gpu abacus"), &["abacus"]);
    shell.fail(&format!("{TRAIN} --resume --seed 5"), &["was made with --seed 0, not 5"]);
    shell.fail(&format!("{TRAIN} --resume --rank 3"), &["step-2", "with other ranks"]);
    assert_eq!((shell.names("run"), shell.metrics("run")), (names, metrics));
    assert!(shell.read("run/adapter_model.safetensors") == before);

    shell.succeed(&format!("{TRAIN} --overwrite --seed 1"));
    assert!(shell.read("run/adapter_model.safetensors") != before);
    assert_eq!(shell.names("run/checkpoints"), [""; 0], "the old run's checkpoints are gone");
    assert_eq!(shell.read("run/notes.txt"), b"mine");
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let shell = shell();
    shell.succeed(&format!("{TRAIN} --save-every 1"));
    let resume = "train --resume run/checkpoints/step-2 --steps 4";
    for file in ["state.json", "optimizer.safetensors", "adapter_model.safetensors", "adapter_config.json"] {
        let path = format!("run/checkpoints/step-2/{file}");
        let good = shell.read(&path);
        edit(&shell.path(&path), |bytes| bytes.truncate(bytes.len() / 2));
        shell.fail(resume, &[&path]);
        std::fs::remove_file(shell.path(&path)).unwrap();
        shell.fail(resume, &["run/checkpoints/step-2"]);
        shell.write(&path, good);
    }
    // Without a name, the newest checkpoint that is whole serves, and the damaged one is named.
    let path = "run/checkpoints/step-2/optimizer.safetensors";
    edit(&shell.path(path), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let shown = shell.succeed(&TRAIN.replace("--steps 2", "--steps 4 --resume"));
    assert!(shown.contains("the checkpoint of step 2 is passed over") && shown.contains(path), "{shown}");
    assert!(shown.contains("resumed after step 1"), "{shown}");
}

#[test]
fn a_checkpoint_of_another_run_is_not_gone_on_from() {
    let shell = shell();
    let data = shell.read("data.jsonl");
    shell.succeed(&format!("{TRAIN} --save-every 1 --schedule constant"));
    let before = shell.read("run/metrics.jsonl");
    let resume = TRAIN.replace("--steps 2", "--steps 4 --resume --schedule constant");
    shell.fail(&format!("{resume} --batch-size 2"), &["run/checkpoints/step-2", "with --batch-size 4, not 2"]);
    shell.fail(&format!("{resume} --no-shuffle"), &["run/checkpoints/step-2", "with shuffle = true, not false"]);
    shell.write("data.jsonl", random_lines(8, 96, 2));
    shell.fail(&resume, &["run/checkpoints/step-2", "other training examples than --data data.jsonl gives now"]);
    shell.write("data.jsonl", data);
    let good = shell.read("model/model.safetensors");
    let mut weights = Weights::read(&shell.path("model/model.safetensors"));
    weights.scale(attacks::VICTIM, 1.5);
    shell.write("model/model.safetensors", weights.bytes());
    shell.fail(&resume, &["run/checkpoints/step-2", "other base weights"]);
    shell.write("model/model.safetensors", good);
    assert!(shell.read("run/metrics.jsonl") == before);
    // What one may change on purpose is said; what changes no number is not.
    let shown = shell.succeed(&format!("{resume} --lr 0.001 --log-every 2"));
    assert!(shown.contains("not as one uninterrupted run: --lr was 0.0002 before"), "{shown}");
    let shown = shell.succeed(&resume.replace("--steps 4", "--steps 6 --lr 0.001 --keep 5"));
    assert!(shown.contains("resumed after step 2") && shown.contains("--lr was 0.0002"), "{shown}");
    shell.succeed(&resume.replace("--resume", "--overwrite --save-every 1"));
    let shown = shell.succeed(&resume.replace("--steps 4", "--steps 6 --keep 5"));
    assert!(shown.contains("resumed after step 4") && !shown.contains("uninterrupted"), "{shown}");
}

#[test]
fn numbers_that_break_stop_the_run_and_spare_the_adapter() {
    let shell = shell();
    let clear = "not finite in 3 steps on end";
    shell.succeed(&format!("{TRAIN} --save-every 1"));
    let before = shell.read("run/adapter_model.safetensors");
    let resume = TRAIN.replace("--steps 2", "--steps 20 --resume --save-every 1 --schedule constant");
    shell.fail(&format!("{resume} --lr 1e30"), &[clear, "lower --lr"]);
    assert!(shell.read("run/adapter_model.safetensors") == before);
    assert!(shell.names("run/checkpoints").contains(&"step-2".to_owned()), "the last good state stays");
    shell.fail(&resume.replace("--out run", "--out new --lr 1e39").replace("--resume ", ""), &["not finite"]);
    assert!(!shell.names("new").iter().any(|name| name.starts_with("adapter")), "{:?}", shell.names("new"));
    assert!(shell.metrics("new").iter().all(|line| line["loss"].is_f64()));

    let mut weights = Weights::read(&shell.path("model/model.safetensors"));
    weights.scale("model.norm.weight", 1e37);
    shell.write("model/model.safetensors", weights.bytes());
    let huge = TRAIN.replace("--out run --steps 2", "--out huge --steps 9");
    let output = shell.command(&huge).output().unwrap();
    let (shown, _) = texts(&output);
    for step in 1..=3 {
        assert!(shown.contains(&format!("step {step}: loss or gradient were not finite; the step was skipped")));
    }
    shell.fail(&format!("{huge} --overwrite"), &[clear, "damaged weights"]);
    assert_eq!(shell.names("huge"), ["loss.svg", "metrics.jsonl", "run.toml"]);
    shell.fail(&format!("{huge} --overwrite --eval-data data.jsonl"), &["validation loss is not finite"]);
    shell.fail("eval --model model --data data.jsonl", &["the loss on data.jsonl is not finite"]);
}

#[test]
fn output_directories_that_cannot_be_made() {
    let shell = shell();
    let elsewhere = |out: &str| TRAIN.replace("--out run", &format!("--out {out}"));
    shell.fail(&elsewhere("data.jsonl/run"), &["data.jsonl/run: cannot be written to"]);
    shell.fail(&elsewhere("data.jsonl"), &["data.jsonl: cannot be written to"]);
    if cfg!(target_os = "linux") {
        shell.fail(&elsewhere("/proc/run"), &["/proc/run: cannot be written to"]);
    }
}

/// Runs `loraine ARGS` where `disk` is a file system of its own, mounted with `options`; none where that is not allowed.
fn on_own_disk(shell: &Shell, options: &str, args: &str) -> Option<std::process::Output> {
    std::fs::create_dir_all(shell.path("disk")).unwrap();
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).current_dir(shell.path("."));
        command.env("XDG_RUNTIME_DIR", shell.path(".")).env("NO_COLOR", "1").output().ok()
    };
    let mount = format!("mount -t tmpfs -o {options} tmpfs disk");
    if !in_namespace(&mount).is_some_and(|output| output.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return None;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_loraine")).display();
    in_namespace(&format!("{mount}; {program} {args}; code=$?; find disk -type f | sort; exit $code"))
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let shell = shell();
    for (more, kilobytes) in [("", 40), ("--save-every 1", 40), ("--save-every 1 --keep 9", 220)] {
        let args = TRAIN.replace("--out run", "--out disk/run").replace("--steps 2", "--steps 9");
        let Some(output) = on_own_disk(&shell, &format!("size={kilobytes}k"), &format!("{args} {more}")) else {
            return;
        };
        let (shown, problems) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{shown}{problems}");
        assert!(
            problems.contains("error: disk/run/") && problems.contains("cannot be written: No space left"),
            "{problems}"
        );
        assert!(!shown.contains(".part"), "{shown}");
        for step in 1..=9 {
            let files = shown.lines().filter(|line| line.starts_with(&format!("disk/run/checkpoints/step-{step}/")));
            assert!(matches!(files.count(), 0 | 5), "{shown}");
        }
    }
}

#[test]
fn a_read_only_disk_is_found_before_the_model_is_loaded() {
    let shell = shell();
    let args = TRAIN.replace("--out run", "--out disk/run");
    let Some(output) = on_own_disk(&shell, "ro", &args) else { return };
    let (shown, problems) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}{problems}");
    assert!(problems.contains("error: disk/run: cannot be written to: Read-only file system"), "{problems}");
    assert!(!shown.contains("memory "), "{shown}");
}

#[test]
fn a_tokenizer_that_grows_without_end_is_stopped() {
    let shell = shell();
    let doubled = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "normalizer": {"type": "Sequence", "normalizers": vec![doubled; 34]},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "b"},
    });
    shell.write("model/tokenizer.json", tokenizer.to_string());
    shell.write("model/tokenizer_config.json", r#"{"eos_token": "b"}"#);
    shell.write("data.jsonl", "{\"text\": \"aaaa\"}\n");
    shell.fail("inspect --model model --data data.jsonl", &["tokenizer.json of the model", "MiB of memory"]);
    refuses(&shell, "", &["tokenizer.json of the model", "MiB of memory"]);
}

#[test]
fn a_record_has_a_limit() {
    let shell = shell();
    shell.write("data.jsonl", format!("{{\"text\": \"{}\"}}\n", "a ".repeat(9 << 20)));
    refuses(&shell, "", &["data.jsonl, line 1", "has more than 16 MiB"]);
    shell.write("data.json", format!("[{{\"text\": \"{}\"}}]\n", "a ".repeat(9 << 20)));
    shell.fail("train --model model --data data.json --out run", &["data.json", "has more than 16 MiB"]);
}
