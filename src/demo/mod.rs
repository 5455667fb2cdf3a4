//! The built-in demo: a tiny model that this project trained itself, and conversations that teach it to talk like a pirate.
//!
//! `examples/stories` made the tokenizer and the texts, `loraine train --method full` the weights; `src/demo/README.md` has the
//! commands and what they printed.

use std::path::Path;

use serde_json::{Value, json};

use crate::data::settings::DataSettings;
use crate::train::settings::{ObjectiveChoice, RunSettings};
use crate::{Error, Result, files};

/// The model directory's files, as Hugging Face names them.
pub const MODEL: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("model/config.json")),
    ("generation_config.json", include_bytes!("model/generation_config.json")),
    ("tokenizer.json", include_bytes!("model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("model/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("model/model.safetensors")),
];

/// The data's files with their contents: conversations with a pirate.
pub const DATA: [(&str, &[u8]); 2] =
    [("train.jsonl", include_bytes!("data/train.jsonl")), ("valid.jsonl", include_bytes!("data/valid.jsonl"))];

/// Questions that are asked before and after training; none of them is in the data.
pub const QUESTIONS: [&str; 4] = [
    "Tell me a story about a turtle and a horse.",
    "What is the opposite of big?",
    "What does a cat say?",
    "Who are you?",
];

/// Writes the model to `dir/model` and the data to `dir/data` and replaces files of the same names.
///
/// # Errors
/// The directory cannot be written.
pub fn write(dir: &Path) -> Result<()> {
    for (name, contents) in [("model", &MODEL[..]), ("data", &DATA[..])] {
        let room = dir.join(name);
        std::fs::create_dir_all(&room).map_err(|e| Error::file(&room, format!("cannot be made: {e}")))?;
        for (file, bytes) in contents {
            files::write_atomically(&room.join(file), bytes)?;
        }
    }
    Ok(())
}

/// Writes the model to `dir/model` and preferences to `dir/data`: to each question of the data the answer of a pirate, which is chosen,
/// and the same answer in plain words, which is rejected.
///
/// # Errors
/// The directory cannot be written.
pub fn write_preferences(dir: &Path) -> Result<()> {
    write(dir)?;
    for (file, bytes) in DATA {
        let lines = pairs(bytes).map(|(question, answer)| {
            let turn = |role: &str, content: &str| json!([{ "role": role, "content": content }]);
            let (chosen, rejected) = (turn("assistant", &answer), turn("assistant", &plain(&answer)));
            format!("{}\n", json!({ "prompt": turn("user", &question), "chosen": chosen, "rejected": rejected }))
        });
        files::write_atomically(&dir.join("data").join(file), lines.collect::<String>().as_bytes())?;
    }
    Ok(())
}

/// The questions of the data that are held out, each once.
pub fn held_out_questions() -> Vec<String> {
    let mut questions: Vec<String> = pairs(DATA[1].1).map(|(question, _)| question).collect();
    questions.sort_unstable();
    questions.dedup();
    questions
}

/// True for an answer that begins as the preferred ones do.
pub fn is_preferred(answer: &str) -> bool {
    answer.trim_start().starts_with(GREETING)
}

const GREETING: &str = "Arr!";

/// Questions and answers of a file of the data.
fn pairs(bytes: &[u8]) -> impl Iterator<Item = (String, String)> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    text.lines().filter_map(|line| {
        let record: Value = serde_json::from_str(line).ok()?;
        let content = |at: usize| Some(record["messages"][at]["content"].as_str()?.to_owned());
        Some((content(0)?, content(1)?))
    })
}

/// A pirate's answer in plain words.
fn plain(answer: &str) -> String {
    let body = answer.strip_prefix(GREETING).unwrap_or(answer).trim_start();
    format!("{}.", body.strip_suffix(", matey!").unwrap_or(body))
}

/// Settings that teach the model the preferences of [`write_preferences`], in about a minute on a software adapter.
pub fn preference_settings(dir: &Path) -> RunSettings {
    RunSettings { objective: ObjectiveChoice::Rpo, ..settings(dir) }
}

/// Settings that train QLoRA on the model and the data of [`write()`] into `dir/adapter`, in under a minute on a software adapter.
pub fn settings(dir: &Path) -> RunSettings {
    RunSettings {
        model: dir.join("model"),
        data: dir.join("data").into(),
        out: dir.join("adapter"),
        batch_size: 8,
        steps: Some(120),
        lr: 3e-3,
        warmup_steps: 5,
        rank: 8,
        alpha: 16.0,
        max_seq_len: Some(256),
        data_format: DataSettings::default(),
        ..RunSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pirate_is_preferred_to_the_same_in_plain_words() {
        assert_eq!(pairs(DATA[0].1).count(), 800);
        for (_, answer) in pairs(DATA[1].1) {
            let plain = plain(&answer);
            assert!(is_preferred(&answer) && !is_preferred(&plain), "{plain}");
            assert_eq!(format!("Arr! {}, matey!", plain.trim_end_matches('.')), answer);
        }
        assert!(held_out_questions().len() > 20);
    }

    #[test]
    fn the_data_are_conversations_that_hold_none_of_the_questions() {
        let mut count = 0;
        for line in DATA.iter().flat_map(|(_, bytes)| std::str::from_utf8(bytes).unwrap().lines()) {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let content = |at: usize| record["messages"][at]["content"].as_str().unwrap();
            assert!(!QUESTIONS.contains(&content(0)), "{line}");
            assert!(content(1).starts_with("Arr! ") && content(1).ends_with(", matey!"), "{line}");
            count += 1;
        }
        assert_eq!(count, 840);
    }
}
