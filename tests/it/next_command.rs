//! The commands that a finished command prints: each runs as it stands and shows something.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::cli::{Shell, random_lines, texts};
use crate::common::fixture;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo");

/// Runs a line of a shell in the shell's directory; what it printed.
fn typed(shell: &Shell, line: &str) -> String {
    let mut command = Command::new("sh");
    let program = Path::new(env!("CARGO_BIN_EXE_loraine")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let like = shell.command("info");
    command.args(["-c", line]).current_dir(like.get_current_dir().unwrap()).stdin(Stdio::null());
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", format!("{}:{path}", program.display()));
    let output = command.output().unwrap();
    let (shown, problems) = texts(&output);
    assert!(output.status.success(), "{line}\n{shown}{problems}");
    shown
}

/// The command of the last line.
fn next(shown: &str) -> String {
    let last = shown.trim_end().lines().last().unwrap_or_default();
    last.strip_prefix("try it: ").unwrap_or_else(|| panic!("no command at the end:\n{shown}")).to_owned()
}

fn ask(shell: &Shell, command: &str) -> String {
    assert!(command.starts_with("loraine chat "), "{command}");
    let answer = typed(shell, &format!("echo 'What does a dog eat?' | {command}"));
    assert!(!answer.trim().is_empty(), "{command} answers nothing");
    answer
}

#[test]
fn the_command_after_training_on_conversations_opens_a_chat() {
    let shell = Shell::new();
    // A directory that a shell would take apart.
    let shown =
        typed(&shell, &format!("loraine train --model {DEMO}/model --data {DEMO}/data --steps 1 --out \"my run's\""));
    let command = next(&shown);
    assert_eq!(command, format!("loraine chat --model {DEMO}/model --quant nf4 --adapter 'my run'\\''s'"));
    ask(&shell, &command);
    let card = String::from_utf8(shell.read("my run's/README.md")).unwrap();
    assert!(card.contains(&format!("```sh\n{command}\n```")), "{card}");

    let merged = typed(&shell, &format!("loraine merge --model {DEMO}/model --adapter \"my run's\" --out merged"));
    ask(&shell, &next(&merged));
    let quantized = typed(&shell, &format!("loraine quantize --model {DEMO}/model --out small"));
    ask(&shell, &next(&quantized));
    let lora = format!("loraine train --model {DEMO}/model --data {DEMO}/data --steps 1 --out lora --method lora");
    ask(&shell, &next(&typed(&shell, &lora)));
    let full = format!("loraine train --model {DEMO}/model --data {DEMO}/data --steps 1 --out full --method full");
    ask(&shell, &next(&typed(&shell, &full)));
}

#[test]
fn the_command_after_training_on_a_text_continues_it() {
    let shell = Shell::new();
    shell.write(
        "notes.txt",
        "Once upon a time there was a little dog. It had a red ball, and it liked to play. ".repeat(9),
    );
    let train = format!("train --model {DEMO}/model --steps 1 --quantize-embedding --no-double-quant");
    let command = next(&shell.succeed(&format!("{train} --data notes.txt --out run")));
    let given = format!("--model {DEMO}/model --quant nf4 --no-double-quant --quantize-embedding --adapter run");
    assert_eq!(command, format!("loraine generate {given} --raw --prompt 'Once upon a time there was'"));
    assert!(typed(&shell, &command).trim().len() > "Once upon a time there was".len());

    shell.write("pairs.jsonl", "{\"prompt\": \"The dog's ball is\", \"completion\": \" red.\"}\n".repeat(4));
    let command = next(&shell.succeed(&format!("{train} --data pairs.jsonl --out pairs")));
    assert!(command.ends_with(r"--raw --prompt 'The dog'\''s ball is'"), "{command}");
    typed(&shell, &command);
}

#[test]
fn the_command_after_training_on_tokens_needs_no_tokenizer() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(6, 96, 1));
    let model = fixture("llama_tied");
    let shown = shell.succeed(&format!("train --model {} --data data.jsonl --steps 1 --out run", model.display()));
    let command = next(&shown);
    assert!(command.starts_with("loraine eval --model ") && command.ends_with("--data data.jsonl"), "{command}");
    assert!(typed(&shell, &command).contains("\nloss "));
    let merged = shell.succeed(&format!("merge --model {} --adapter run --out merged", model.display()));
    assert!(typed(&shell, &next(&merged)).contains("model: merged"));
}
