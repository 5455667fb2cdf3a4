//! Data as users bring it, through the terminal program: tables, shards, several sources, bad records, and what the reports say.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::common::cli::{Shell, assert_fails, texts, train_on};

/// The model of the demo: its tokenizer and chat template.
fn demo_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/demo/model")
}

fn inspect(shell: &Shell, args: &str) -> Value {
    let shown = shell.succeed(&format!("inspect --model {} --json {args}", demo_model().display()));
    serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{e}: {shown}"))
}

fn lines(first: u32, count: u32) -> String {
    (0..count).map(|at| format!("{{\"input_ids\": [{}, 5, 6, 7]}}\n", first + at)).collect()
}

#[test]
fn a_table_is_read_as_the_records_that_its_columns_make() {
    let shell = Shell::new();
    shell.write("train.csv", "instruction,input,output\r\n\"Add, please\",1 2,3\r\nSubtract,,4\r\n");
    let inspection = inspect(&shell, "--data train.csv");
    let report = &inspection["report"];
    assert_eq!((&report["kept"], &report["shapes"]), (&json!(2), &json!({"alpaca": 2})));
    assert_eq!(report["formats"], json!(["alpaca, from the fields instruction, output and input"]));
    let text = inspection["examples"][0]["text"].as_str().unwrap();
    assert!(text.contains("Add, please\n\n1 2"), "{text}");
    let page = shell.succeed(&format!("inspect --model {} --data train.csv", demo_model().display()));
    assert!(page.contains("  format: alpaca, from the fields instruction, output and input\n"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 100), "{page}");
}

#[test]
fn several_sources_and_shards_train_together() {
    let shell = Shell::new();
    shell.write("a.jsonl", lines(10, 3));
    shell.write("b.jsonl", lines(20, 3));
    shell.write("all.jsonl", lines(10, 3) + &lines(20, 3));
    let train = format!("{} --rank 2 --steps 1 --eval-fraction 0", train_on("llama_tied"));
    shell.succeed(&format!("{train} --data a.jsonl --data b.jsonl --out both"));
    shell.succeed(&format!("{train} --data all.jsonl --out one"));
    shell.assert_same_adapter("two files and one", ["both", "one"]);
    let settings = String::from_utf8(shell.read("both/run.toml")).unwrap();
    assert!(
        settings.contains("data = [\"a.jsonl\", \"b.jsonl\"]") || settings.contains("\"b.jsonl\",\n]"),
        "{settings}"
    );
    shell.succeed("train --config both/run.toml --out again");
    shell.assert_same_adapter("the run and its record", ["both", "again"]);
}

#[test]
fn a_directory_of_save_to_disk_is_read_by_its_splits() {
    let shell = Shell::new();
    let saved = |name: &str| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/arrow/").to_owned() + name;
    let inspection = inspect(&shell, &format!("--data {} -n 9", saved("saved")));
    assert_eq!(inspection["report"]["kept"], 6);
    let texts = |inspection: &Value| -> Vec<String> {
        let examples = inspection["examples"].as_array().unwrap();
        examples.iter().map(|example| example["text"].as_str().unwrap().to_owned()).collect()
    };
    let all = texts(&inspection);
    assert!(all.iter().enumerate().all(|(i, text)| text.contains(&format!("caf\u{e9} \u{1f600} {i}"))), "{all:?}");
    let test = texts(&inspect(&shell, &format!("--data {}:test -n 9", saved("saved"))));
    assert!(test.len() == 2 && test[0].contains("\u{1f600} 10"), "{test:?}");
    // Rows that a filter has left out are not in the file.
    let single = texts(&inspect(&shell, &format!("--data {} -n 9", saved("single"))));
    assert!(single.len() == 2 && single[1].contains("a a b"), "{single:?}");
    let records = texts(&inspect(&shell, &format!("--data {}", saved("saved/train/data-00001-of-00002.arrow"))));
    assert!(records[0].contains("\u{1f600} 3"), "{records:?}");
}

#[test]
fn a_validation_file_is_evaluated_on_and_reports_say_what_was_left_out() {
    let shell = Shell::new();
    std::fs::create_dir(shell.path("data")).unwrap();
    shell.write("data/train.jsonl", lines(10, 4));
    shell.write("data/validation.jsonl", lines(20, 2) + "{\"input_ids\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}\n");
    shell.write("data/extra.jsonl", lines(30, 1));
    let run = format!("{} --rank 2 --steps 1 --max-seq-len 8 --on-long drop", train_on("llama_tied"));
    let shown = shell.succeed(&format!("{run} --data data --out run"));
    assert!(shown.contains("validation.jsonl: 2 examples from 3 records"), "{shown}");
    assert!(shown.contains("not used: the file extra.jsonl (1)"), "{shown}");
    let eval =
        format!("eval {} --data data --max-seq-len 8 --on-long drop", train_on("llama_tied").replace("train ", ""));
    let shown = shell.succeed(&eval);
    assert!(shown.contains("1 dropped: longer than the longest sequence (number 3)"), "{shown}");
    let result: Value = serde_json::from_str(&shell.succeed(&format!("{eval} --json"))).unwrap();
    assert_eq!((&result["data"]["read"], &result["data"]["kept"]), (&json!(3), &json!(2)));
    assert_eq!(result["data"]["dropped"]["too-long"], json!({"count": 1, "first": [3]}));
}

#[test]
fn bad_records_are_listed_together_or_left_out() {
    let shell = Shell::new();
    shell.write("d.jsonl", "{\"text\": \"a\"}\n{\"text\": 3}\n{\"a\": \"b\"\n{\"text\": \"b\"}\n");
    let args = format!("inspect --model {} --data d.jsonl", demo_model().display());
    let output = shell.command(&args).output().unwrap();
    let (_, problems) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    for says in [
        "2 of 4 examples cannot be trained on; --on-bad drop leaves them out",
        "line 2: `text` is 3",
        "line 3: is not valid JSON",
    ] {
        assert!(problems.contains(says), "{problems}");
    }
    let report = &inspect(&shell, "--data d.jsonl --on-bad drop")["report"];
    assert_eq!((&report["kept"], &report["dropped"]["bad"]["count"]), (&json!(2), &json!(2)));
    assert_eq!(report["bad"].as_array().unwrap().len(), 2);
    shell.write("q.jsonl", "{\"ask\": \"q\", \"reply\": \"r\"}\n");
    let args = args.replace("d.jsonl", "q.jsonl");
    let says = ["fields [ask, reply]", "--prompt-field ask --completion-field reply"];
    assert_fails(&mut shell.command(&args), &args, &says);
}

#[test]
fn examples_are_shown_as_training_sees_them_in_every_script() {
    let shell = Shell::new();
    shell.write("a.txt", "\u{feff}Once Zo\u{eb} \u{4f60}\u{597d}");
    let tokens = |inspection: &Value| -> Vec<Value> { inspection["examples"][0]["tokens"].as_array().unwrap().clone() };
    let text: String = tokens(&inspect(&shell, "--data a.txt")).iter().map(|t| t["text"].as_str().unwrap()).collect();
    assert_eq!(text.trim_start(), "Once Zo\u{eb} \u{4f60}\u{597d}");
    let groups = tokens(&inspect(&shell, "--data a.txt"));
    assert!(groups.iter().any(|token| token["continues"] == true && token["text"] == ""), "{groups:?}");

    shell.write("long.jsonl", format!("{{\"text\": \"{}\"}}\n", "a dog ran. ".repeat(20)));
    let cut = inspect(&shell, "--data long.jsonl --max-seq-len 8 --on-long truncate");
    assert_eq!(tokens(&cut).len(), 8);
    assert!(cut["examples"][0]["change"].as_str().unwrap().starts_with("cut from "), "{cut}");
    let split = inspect(&shell, "--data long.jsonl --max-seq-len 8 --on-long split");
    assert!(split["examples"][1]["change"].as_str().unwrap().starts_with("piece 2 of "), "{split}");
    shell.write("short.jsonl", "{\"text\": \"a dog\"}\n".repeat(3));
    let packed = inspect(&shell, "--data short.jsonl --max-seq-len 64 --packing");
    let slots: Vec<_> = packed["examples"].as_array().unwrap().iter().map(|example| example["slot"].clone()).collect();
    assert_eq!(slots, [json!(1), json!(1), json!(1)]);
}

#[test]
fn what_is_no_data_is_named() {
    let shell = Shell::new();
    shell.write("book.xlsx", "PK\x03\x04");
    shell.write("d.jsonl", "version https://git-lfs.github.com/spec/v1\n");
    let args = |data: &str| format!("inspect --model {} --data {data}", demo_model().display());
    for (data, says) in [
        ("book.xlsx", "supported are .jsonl, .json, .csv"),
        ("d.jsonl", "git lfs pull"),
        ("squad", "squad: is not there"),
        ("none.jsonl", "none.jsonl: cannot be read"),
    ] {
        assert_fails(&mut shell.command(&args(data)), data, &[says]);
    }
    let both = args("d.jsonl --shape chat --prompt-field q");
    assert_fails(&mut shell.command(&both), &both, &["--prompt-field has no use with --shape chat"]);
}
