//! Published chat templates against what transformers and TRL make of them (`fixtures/foreign_templates.py`). The templates are read
//! from where they lie: `../shared/chat_templates`, and the TRL wheel of a Python environment in `../venv` or at `TRL_CHAT_TEMPLATES`.

use std::path::PathBuf;

use loraine::data::fitting::fitted;
use loraine::data::sample::Conversation;
use loraine::data::template::{ChatTemplate, Input};
use loraine::data::tokenizer::Tokenizer;
use loraine::data::turns::assistant_turns;
use serde_json::{Map, Value};

use crate::common::{fixture, shared};

fn fnv(text: &str) -> String {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
}

/// The directory of a wheel's templates.
fn trl() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("TRL_CHAT_TEMPLATES") {
        return Some(dir.into());
    }
    let lib = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../venv/lib")).ok()?;
    let found = lib.flatten().map(|python| python.path().join("site-packages/trl/chat_templates"));
    found.into_iter().find(|dir| dir.is_dir())
}

/// A template's text and the case of the fixture for it.
fn templates(cases: &Value) -> Vec<(String, String, Value)> {
    let (shared, trl) = (shared("chat_templates"), trl());
    if trl.is_none() {
        eprintln!("skipped: the templates of the TRL wheel; name their directory in TRL_CHAT_TEMPLATES");
    }
    let mut found = Vec::new();
    for case in cases.as_array().unwrap() {
        let dir = if case["place"] == "trl" { &trl } else { &shared };
        let file = case["file"].as_str().unwrap();
        let Some(text) = dir.as_ref().and_then(|dir| std::fs::read_to_string(dir.join(file)).ok()) else { continue };
        // As Python reads a text file.
        let text = text.replace("\r\n", "\n");
        let text = match file.ends_with(".json") {
            true => serde_json::from_str::<Value>(&text).unwrap()["chat_template"].as_str().unwrap().to_owned(),
            false => text,
        };
        if fnv(&text) == case["template"] {
            found.push((format!("{}/{file}", case["place"].as_str().unwrap()), text, case.clone()));
        } else {
            eprintln!("skipped: {file} is another version than the recorded one");
        }
    }
    found
}

fn conversation(recorded: &Value) -> Conversation {
    Conversation {
        messages: recorded["messages"].as_array().unwrap().clone(),
        tools: Some(recorded["tools"].clone()).filter(|tools| !tools.is_null()),
        variables: recorded["kwargs"].as_object().cloned().unwrap_or_default(),
        ..Default::default()
    }
}

fn special_tokens() -> Option<Map<String, Value>> {
    let dir = shared("tokenizers/tinyllama-1.1b-chat")?;
    Some(Tokenizer::from_tokenizer_dir(&dir).unwrap().special_tokens().unwrap())
}

fn fixture_of_templates() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture("foreign_templates.json")).unwrap()).unwrap()
}

#[test]
fn published_templates_render_as_in_transformers() {
    let Some(special) = special_tokens() else { return };
    let recorded = fixture_of_templates();
    let conversations: Vec<_> = recorded["conversations"].as_array().unwrap().iter().map(conversation).collect();
    let (mut equal, mut refused, mut differ) = (0, 0, Vec::new());
    for (name, text, case) in templates(&recorded["templates"]) {
        let template = ChatTemplate::new(&text, name.clone(), special.clone());
        let template = template.and_then(|template| template.at(recorded["moment"].as_str().unwrap()));
        for (index, (conversation, expected)) in conversations.iter().zip(case["texts"].as_array().unwrap()).enumerate()
        {
            let Conversation { messages, tools, variables, .. } = conversation;
            let input = Input { messages, tools: tools.as_ref(), variables: Some(variables) };
            let render = |prompt| {
                let template = template.as_ref().map_err(ToString::to_string)?;
                template.render_input(&input, prompt).map(|rendered| rendered.text)
            };
            let both = render(false).and_then(|text| Ok(format!("{text}\0{}", render(true)?)));
            match (&both, expected.as_str().unwrap()) {
                (Ok(text), expected) if fnv(text) == expected => equal += 1,
                (Err(_), "-") => refused += 1,
                (Ok(_), "-") => {
                    differ.push(format!("{name}, conversation {index}: rendered, but transformers refuses it"))
                }
                (Ok(text), _) => differ.push(format!("{name}, conversation {index}: another text: {text:?}")),
                (Err(problem), _) => differ.push(format!("{name}, conversation {index}: {problem}")),
            }
        }
    }
    let all = equal + refused + differ.len();
    println!("{all} renderings: {equal} equal, {refused} refused by both, {} differ", differ.len());
    differ.iter().for_each(|line| println!("  {}", line.chars().take(400).collect::<String>()));
    assert!(differ.len() * 100 <= all, "{} of {all} differ:\n{}", differ.len(), differ.join("\n"));
}

/// What `assistant_only_loss` trains with TRL's training templates, against what the original templates give here.
#[test]
fn originals_are_trained_as_with_the_training_templates_of_trl() {
    let Some(special) = special_tokens() else { return };
    let recorded = fixture_of_templates();
    let (mut same_text, mut same_ranges, mut others, mut failed) = (0, 0, Vec::new(), Vec::new());
    for (name, text, case) in templates(&recorded["templates"]) {
        let Some(trained) = case["trained"].as_array() else { continue };
        let template = ChatTemplate::new(&text, name.clone(), special.clone()).unwrap();
        let template = template.at(recorded["moment"].as_str().unwrap()).unwrap();
        if template.wants_parts() {
            // Of models of images, which TRL trains in another way.
            continue;
        }
        for (index, (expected, messages)) in
            trained.iter().zip(recorded["conversations"].as_array().unwrap()).enumerate()
        {
            let conversation = conversation(messages);
            if expected.is_null() || expected["ranges"].as_array().unwrap().is_empty() {
                continue;
            }
            // Contents of parts and developer messages, which many templates lose: they are fitted here first.
            let roles_and_contents = |message: &Value| message["role"] == "developer" || message["content"].is_array();
            if conversation.messages.iter().any(roles_and_contents) {
                continue;
            }
            let what = format!("{name}, conversation {index}");
            let turns = fitted(&template, &conversation).and_then(|fitted| assistant_turns(&template, &fitted, 0));
            match turns {
                Err(problem) => failed.push(format!("{what}: {problem}")),
                Ok(turns) if fnv(&turns.text) == expected["text"] => {
                    same_text += 1;
                    let ranges: Vec<_> = turns.turns.iter().map(|range| [range.start, range.end]).collect();
                    if serde_json::json!(ranges) == expected["ranges"] {
                        same_ranges += 1;
                    } else if name.contains("qwen3.") || index == 0 {
                        println!("  {what}: ranges {ranges:?} instead of {}", expected["ranges"]);
                    }
                }
                Ok(turns) => others.push(format!("{what}: {:?}", turns.text)),
            }
        }
    }
    let all = same_text + others.len() + failed.len();
    println!(
        "{all} conversations: {same_text} of the same text, {same_ranges} of them with the same ranges; {} of another text, {} \
         refused",
        others.len(),
        failed.len()
    );
    others.iter().chain(&failed).for_each(|line| println!("  {}", line.chars().take(500).collect::<String>()));
    assert!(all == 0 || same_text * 100 >= 90 * all, "only {same_text} of {all} have the text that TRL trains");
}
