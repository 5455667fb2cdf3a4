//! What a newcomer types: answers with and without a chat template, adapters in a zip file, names that are nearly right, and settings by
//! the names of other programs.

use std::io::Write;

use serde_json::Value;
use zip::write::SimpleFileOptions;

use crate::common::cli::{Shell, assert_fails, random_lines, train_on};
use crate::common::fixture;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

fn answer(shell: &Shell, flags: &str) -> Value {
    let shown = shell.succeed(&format!("generate --model {DEMO}/model --json --max-tokens 24 {flags}"));
    serde_json::from_str::<Value>(&shown).unwrap()["answers"][0].clone()
}

#[test]
fn generate_applies_the_chat_template_unless_it_is_told_not_to() {
    let shell = Shell::new();
    shell.write("plain.jinja", "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}");
    let ids = |answer: &Value| answer["prompt_ids"].as_array().unwrap().len();
    let [own, raw] = ["--prompt Hello", "--prompt Hello --raw"].map(|flags| answer(&shell, flags));
    assert_eq!((&own["chat_template"], &raw["chat_template"]), (&true.into(), &false.into()));
    assert!(ids(&own) > ids(&raw), "{own}\n{raw}");
    let chat = shell.path("chat");
    std::fs::write(&chat, "Hello\n").unwrap();
    let mut command = shell.command(&format!("chat --model {DEMO}/model --temperature 0 --max-tokens 24"));
    let output = command.stdin(std::fs::File::open(&chat).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), own["text"].as_str().unwrap().trim());
    let [named, system] =
        ["--chat-template plain.jinja", "--system x"].map(|flags| answer(&shell, &format!("--prompt Hello {flags}")));
    assert!(ids(&named) != ids(&own) && ids(&system) > ids(&own), "{named}\n{system}");
    let shown = shell.succeed(&format!("generate --model {DEMO}/model --prompt Hello --max-tokens 24"));
    assert_eq!(shown.trim(), format!("Hello\n{}", own["text"].as_str().unwrap()).trim());
    let both = format!("generate --model {DEMO}/model --prompt Hello --raw --system x");
    let output = shell.command(&both).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "--raw has no place for a system prompt");
}

#[test]
fn a_stop_string_ends_an_answer_before_it() {
    let shell = Shell::new();
    let whole = answer(&shell, "--raw --prompt Once");
    let text = whole["text"].as_str().unwrap();
    // A word in the middle of the text, which is several tokens.
    let word = text.split_whitespace().nth(4).unwrap();
    let cut = answer(&shell, &format!("--raw --prompt Once --stop {word} --stop nowhere"));
    assert_eq!(cut["text"].as_str().unwrap(), &text[..text.find(word).unwrap()]);
    assert_eq!(cut["stop"], "stop", "{cut}");
    let shown = shell
        .succeed(&format!("generate --model {DEMO}/model --raw --prompt Once --max-tokens 24 --stop {word} --no-echo"));
    assert_eq!(shown.trim_end(), text[..text.find(word).unwrap()].trim_end());
}

#[test]
fn an_adapter_in_a_zip_file_is_one_in_its_directory() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(6, 96, 1));
    shell.succeed(&format!("{} --data data.jsonl --steps 2 --lr 0.05 --method lora --out run", train_on("llama_tied")));
    let mut zip = zip::ZipWriter::new(std::fs::File::create(shell.path("run.zip")).unwrap());
    for file in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
        zip.start_file(file, SimpleFileOptions::default()).unwrap();
        zip.write_all(&shell.read(&format!("run/{file}"))).unwrap();
    }
    zip.finish().unwrap();
    let model = fixture("llama_tied").display().to_string();
    let loss = |adapter: &str| shell.succeed(&format!("eval --model {model} {adapter} --data data.jsonl"));
    assert_eq!(loss("--adapter run.zip"), loss("--adapter run"));
    assert_ne!(loss("--adapter run.zip"), loss(""));
    for adapter in ["run", "run.zip"] {
        shell.succeed(&format!("merge --model {model} --adapter {adapter} --out merged-{adapter}"));
    }
    assert!(shell.read("merged-run/model.safetensors") == shell.read("merged-run.zip/model.safetensors"));
}

#[test]
fn training_starts_from_an_adapter_in_a_zip_file_and_resumes() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(6, 96, 1));
    let train = format!("{} --data data.jsonl --method lora", train_on("llama_tied"));
    shell.succeed(&format!("{train} --steps 2 --lr 0.05 --rank 3 --out run"));
    let mut zip = zip::ZipWriter::new(std::fs::File::create(shell.path("run.zip")).unwrap());
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        zip.start_file(format!("run/{file}"), SimpleFileOptions::default()).unwrap();
        zip.write_all(&shell.read(&format!("run/{file}"))).unwrap();
    }
    zip.finish().unwrap();
    for (from, out) in [("run", "of-directory"), ("run.zip", "of-zip"), ("run.zip", "resumed")] {
        shell.succeed(&format!("{train} --init-adapter {from} --steps 4 --save-every 2 --out {out}"));
    }
    let record = String::from_utf8(shell.read("of-zip/run.toml")).unwrap();
    assert!(record.contains("init-adapter = \"run.zip\"") && record.contains("rank = 3"), "{record}");
    std::fs::remove_dir_all(shell.path("resumed/checkpoints/step-4")).unwrap();
    shell.succeed("train --resume resumed");
    shell.assert_same_adapter("a directory and its zip file", ["of-directory", "of-zip"]);
    shell.assert_same_adapter("a run and its second half", ["of-zip", "resumed"]);
}

#[test]
fn an_adapter_of_another_model_names_it() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(6, 96, 1));
    shell.succeed(&format!("{} --data data.jsonl --steps 1 --out run", train_on("llama_tied")));
    let base = format!("`{}`", fixture("llama_tied").display());
    let generate = format!("generate --model {DEMO}/model --prompt a --adapter");
    shell.fail(&format!("{generate} run"), &["run: was trained on", &base, "width 32", "this model has width 128"]);
    shell.fail(&format!("{generate} rnu"), &["rnu: does not exist", "did you mean run?"]);
    shell.fail("generate --model run --prompt a", &["run: is an adapter, not a model; give --model", "--adapter run"]);
}

#[test]
fn names_that_are_nearly_right_lead_to_the_right_ones() {
    let shell = Shell::new();
    for command in [
        "generate --prompt a",
        "chat",
        "eval --data d",
        "merge --adapter a --out o",
        "quantize --out o",
        "inspect --data d",
        "info",
    ] {
        shell.fail(&format!("{command} --model gpt2"), &["gpt2: does not exist", "owner/name"]);
    }
    shell.write("model.gguf", "GGUF");
    shell.fail(
        "train --model model.gguf --data d --out o",
        &["model.gguf: is cut short: 4 bytes cannot hold a GGUF header"],
    );
    shell.fail("estimate --model qwen-3-4b", &["did you mean `qwen3-4b`?"]);
    shell.fail("train --model m", &["--data and --out are missing"]);
}

#[test]
fn advice_about_long_examples_stays_within_the_models_context() {
    let shell = Shell::new();
    shell.write("long.jsonl", serde_json::json!({ "text": "the dog ran to the park and ".repeat(300) }).to_string());
    let train = format!("train --model {DEMO}/model --data long.jsonl --steps 1 --out out");
    shell.fail(
        &train,
        &["longer than 512 tokens", "the model takes no more, so choose --on-long truncate, drop or split"],
    );
    let short = format!("{train} --max-seq-len 64");
    shell.fail(&short, &["the model takes at most 512 tokens, so raise --max-seq-len to 512 at most"]);
}

#[test]
fn settings_by_the_names_of_other_programs_train_alike() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(9, 96, 1));
    let model = fixture("llama_tied").display().to_string();
    shell.succeed(&format!(
        "train --model {model} --data data.jsonl --out ours --lr 0.01 --rank 4 --alpha 8 --batch-size 2 --grad-accum 2 --steps 10 \
         --warmup-steps 3 --schedule cosine --method lora"
    ));
    shell.succeed(&format!(
        "train --model_name_or_path {model} --dataset data.jsonl --output_dir flags --learning_rate 0.01 --lora_r 4 --lora_alpha 8 \
         --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_steps 10 --warmup_ratio 0.3 \
         --lr_scheduler_type cosine --method lora --packing False"
    ));
    shell.write(
        "settings.toml",
        format!(
            "model_name_or_path = '{model}'\ndataset = 'data.jsonl'\noutput_dir = 'file'\nlearning_rate = 0.01\nlora_r = 4\n\
             lora_alpha = 8\nper_device_train_batch_size = 2\ngradient_accumulation_steps = 2\nmax_steps = 10\n\
             warmup_ratio = 0.3\nlr_scheduler_type = 'cosine'\nmethod = 'lora'\npacking = false\n"
        ),
    );
    shell.succeed("train --config settings.toml");
    shell.assert_same_adapter("flags", ["ours", "flags"]);
    shell.assert_same_adapter("settings", ["ours", "file"]);
    let mut command = shell.command("train --model m --data d --out o --report_to wandb");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tensorboard"), "{output:?}");
    shell.write("other.toml", "load_in_8bit = true\n");
    assert_fails(
        &mut shell.command("train --config other.toml"),
        "",
        &["other.toml", "`load_in_8bit` is not a setting", "4 bits"],
    );
}
