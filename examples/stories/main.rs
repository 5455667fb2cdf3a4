//! Makes what the project's own tiny model is trained on: `cargo run --release --example stories -- OUT_DIR [SEED]`.
//!
//! Little stories, questions about them and small talk, all from word lists, as chat records:
//!
//! - `OUT_DIR/model/`: config.json and a BPE tokenizer trained on the corpus; no weights
//! - `OUT_DIR/corpus/{train,valid}.jsonl`: what the base model learns
//! - `OUT_DIR/pirate/{train,valid}.jsonl`: the same kinds of questions, answered as a pirate would
//!
//! The same seed writes the same bytes.

#![expect(unreachable_pub, reason = "nobody uses a program from outside")]

mod facts;
mod pirate;
mod plots;
mod vocabulary;
mod words;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use words::Dice;

/// Records of each file; those held out come from other draws, so their stories are new.
const CORPUS: [(&str, u64); 2] = [("train", 60_000), ("valid", 400)];
const PIRATE: [(&str, u64); 2] = [("train", 800), ("valid", 40)];

/// One turn of the user and its answer.
pub type Turn = (String, String);

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let out: PathBuf = args.next().ok_or("OUT_DIR is missing: stories OUT_DIR [SEED]")?.into();
    let seed: u64 = args.next().map_or(Ok(1), |text| text.parse()).map_err(|e| format!("SEED: {e}"))?;
    let corpus: Vec<Vec<String>> = split(CORPUS, seed, |dice| conversation(dice, 4));
    let pirate: Vec<Vec<String>> = split(PIRATE, seed + 1, |dice| {
        let asked = |turns: &[Turn]| turns.iter().any(|(question, _)| pirate::HELD_BACK.contains(&question.as_str()));
        let mut turns = conversation(dice, 1);
        while asked(&turns) {
            turns = conversation(dice, 1);
        }
        turns.into_iter().map(|(question, answer)| (question, pirate::speak(&answer))).collect()
    });
    for (name, files, sets) in [("corpus", CORPUS, &corpus), ("pirate", PIRATE, &pirate)] {
        fs::create_dir_all(out.join(name))?;
        for ((file, _), lines) in files.iter().zip(sets) {
            fs::write(out.join(name).join(format!("{file}.jsonl")), lines.concat())?;
        }
    }
    write_model(&out.join("model"), &corpus[0])?;
    println!("{} records in {}", corpus[0].len() + pirate[0].len(), out.display());
    Ok(())
}

fn split(files: [(&str, u64); 2], seed: u64, make: impl Fn(&mut Dice) -> Vec<Turn>) -> Vec<Vec<String>> {
    let mut first = 0;
    let mut sets = Vec::new();
    for (_, count) in files {
        sets.push((first..first + count).map(|i| line(make(&mut Dice::new(seed, i)))).collect());
        first += count;
    }
    sets
}

fn line(turns: Vec<Turn>) -> String {
    let message = |role: &str, content: String| json!({ "role": role, "content": content });
    let messages: Vec<Value> =
        turns.into_iter().flat_map(|(user, answer)| [message("user", user), message("assistant", answer)]).collect();
    format!("{}\n", json!({ "messages": messages }))
}

/// Up to `most` turns.
fn conversation(dice: &mut Dice, most: usize) -> Vec<Turn> {
    match dice.below(10) {
        0..4 => told(dice, most),
        4..8 => read(dice, most),
        8 => (0..1 + dice.below(most)).map(|_| facts::fact(dice)).collect(),
        _ => facts::small_talk(dice),
    }
}

/// The user asks for a story, then asks about it.
fn told(dice: &mut Dice, most: usize) -> Vec<Turn> {
    let story = plots::story(dice);
    let subject = dice.pick(&story.subjects).clone();
    let ask =
        dice.pick(&["Tell me a story about {}.", "Can you tell me a story about {}?", "I want a story about {}."]);
    let mut turns = vec![(ask.replace("{}", &subject), story.text())];
    turns.extend(questions(dice, &story, most - 1));
    turns
}

/// The user tells the story and asks about it.
fn read(dice: &mut Dice, most: usize) -> Vec<Turn> {
    let story = plots::story(dice);
    let mut turns = questions(dice, &story, most);
    if let Some((question, _)) = turns.first_mut() {
        *question = format!("{} {question}", story.text());
    }
    turns
}

fn questions(dice: &mut Dice, story: &plots::Story, most: usize) -> Vec<Turn> {
    let mut left = story.questions.clone();
    let count = most.min(left.len());
    (0..count).map(|_| left.swap_remove(dice.below(left.len()))).collect()
}

fn write_model(dir: &Path, corpus: &[String]) -> Result<(), Box<dyn Error + Send + Sync>> {
    fs::create_dir_all(dir)?;
    vocabulary::train(corpus)?.save(dir.join("tokenizer.json"), true)?;
    for (name, value) in [
        ("config.json", vocabulary::model_config()),
        ("tokenizer_config.json", vocabulary::tokenizer_config()),
        ("generation_config.json", json!({ "bos_token_id": vocabulary::BOS, "eos_token_id": vocabulary::END })),
    ] {
        fs::write(dir.join(name), format!("{value:#}\n"))?;
    }
    Ok(())
}
