//! What a run was written with travels along: chat template, tokenizer, end tokens and date.

use std::path::PathBuf;

use crate::common::cli::Shell;
use crate::common::shared;

const DATED: &str = "{{ strftime_now('%H:%M:%S') }}{% for m in messages %}({{ m.role }}){{ m.content }}{{ eos_token }}{% endfor %}\
                     {% if add_generation_prompt %}(assistant){% endif %}";

/// A directory with eight conversations and a template, and the small story model.
fn prepared() -> Option<(Shell, PathBuf)> {
    let model = shared("models/stories260K")?;
    let shell = Shell::new();
    shell.write("dated.jinja", DATED);
    let line = |i: usize| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Tale {i}?\"}}, {{\"role\": \"assistant\", \"content\": \"Once.\"}}]}}\n"
        )
    };
    shell.write("chat.jsonl", (0..8).map(line).collect::<String>());
    Some((shell, model))
}

#[test]
fn a_run_resumes_with_the_date_of_its_start() {
    let Some((shell, model)) = prepared() else { return };
    let train = |out: &str, options: &str| {
        shell.succeed(&format!(
            "train --model {} --data chat.jsonl --chat-template dated.jinja --rank 2 --steps 4 --save-every 2 --batch-size 1 \
             --out {out} {options}",
            model.display()
        ))
    };
    assert!(train("run", "").contains("dated.jinja, written for 20"));
    let whole = shell.read("run/adapter_model.safetensors");
    std::fs::remove_dir_all(shell.path("run/checkpoints/step-4")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    shell.succeed("train --resume run");
    assert_eq!(shell.read("run/adapter_model.safetensors"), whole);
    // Another run is of another second, unless it is told.
    let recorded = String::from_utf8(shell.read("run/run.toml")).unwrap();
    let date =
        recorded.lines().find_map(|line| line.strip_prefix("template-date = ")).unwrap().trim_matches('"').to_owned();
    train("same", &format!("--template-date {date}"));
    assert_eq!(shell.read("same/adapter_model.safetensors"), whole);
    train("other", "");
    assert_ne!(shell.read("other/adapter_model.safetensors"), whole);
}

#[test]
fn the_template_of_a_run_lies_with_its_adapter_and_with_the_merged_model() {
    let Some((shell, model)) = prepared() else { return };
    let model = model.display();
    shell.succeed(&format!(
        "train --model {model} --data chat.jsonl --chat-template zephyr --rank 2 --steps 1 --out run"
    ));
    let template = shell.read("run/chat_template.jinja");
    assert!(String::from_utf8(template.clone()).unwrap().contains("<|"));
    assert!(shell.names("run").contains(&"tokenizer.json".to_owned()));
    shell.succeed(&format!("merge --model {model} --adapter run --out merged"));
    assert_eq!(shell.read("merged/chat_template.jinja"), template);
    let loss = |options: &str| {
        let printed = shell.succeed(&format!("eval --data chat.jsonl --json {options}"));
        serde_json::from_str::<serde_json::Value>(&printed).unwrap()["loss"].as_f64().unwrap()
    };
    let with_adapter = loss(&format!("--model {model} --adapter run"));
    assert_eq!(loss(&format!("--model {model} --adapter run --chat-template zephyr")), with_adapter);
    assert!((loss("--model merged") / with_adapter - 1.0).abs() < 1e-3);
    // A run that starts from the adapter goes on with its template.
    let shown =
        shell.succeed(&format!("train --model {model} --data chat.jsonl --init-adapter run --steps 1 --out more"));
    assert!(shown.contains("chat template: run/chat_template.jinja"), "{shown}");
    assert_eq!(shell.read("more/chat_template.jinja"), template);
}
