//! Conversations with the real tokenizers and templates of `../shared`, against what transformers makes of them
//! (`fixtures/chat_templates.py`).

use std::path::{Path, PathBuf};

use loraine::data::read::read_with;
use loraine::data::sample::{Conversation, is_assistant};
use loraine::data::settings::DataSettings;
use loraine::data::template::ChatTemplate;
use loraine::data::tokenizer::Tokenizer;
use loraine::data::turns::assistant_turns;
use serde_json::{Value, json};

const SHARED: &str = "../shared";
const FIXTURES: &str = "tests/fixtures";
/// As many as the script took of each data set.
const COUNT: usize = 25;

fn shared_is_there() -> bool {
    let there = Path::new(SHARED).join("tokenizers").is_dir();
    if !there {
        eprintln!("skipped: {SHARED}/tokenizers is not there");
    }
    there
}

fn expected(kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/chat_templates.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    cases[kind].as_array().unwrap().clone()
}

fn data_file(name: &str) -> PathBuf {
    match name {
        "own" => Path::new(FIXTURES).join("conversations.jsonl"),
        "gsm8k" => Path::new(SHARED).join("datasets/chat/gsm8k_train1000_messages.jsonl"),
        "oasst" => Path::new(SHARED).join("datasets/chat/oasst_en100_messages.jsonl"),
        "identity" => Path::new(SHARED).join("datasets/chat/fastchat_identity_messages.jsonl"),
        other => panic!("no data set {other}"),
    }
}

fn conversations(name: &str, count: usize) -> Vec<Conversation> {
    let text = std::fs::read_to_string(data_file(name)).unwrap();
    let conversation = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let messages = record["messages"].as_array().unwrap().clone();
        let tools = Some(record["tools"].clone()).filter(|tools| !tools.is_null());
        let prompt_len = messages.iter().rposition(is_assistant).unwrap();
        Conversation { messages, prompt_len, tools, ..Default::default() }
    };
    text.lines().take(count).map(conversation).collect()
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, hash))
}

/// Two formats of today's date are left out of texts, as the script leaves them out.
fn without_date(text: &str) -> String {
    ["%d %B %Y", "%Y-%m-%d"].into_iter().fold(text.to_owned(), |text, format| {
        let template = format!("{{{{ strftime_now('{format}') }}}}");
        let today = ChatTemplate::new(&template, "the date".into(), Default::default()).unwrap();
        text.replace(&today.render(&[], None, false).unwrap(), "<date>")
    })
}

fn check_texts(what: &str, template: &ChatTemplate, conversation: &Conversation, expected: &Value) {
    let render = |prompt| template.render(&conversation.messages, conversation.tools.as_ref(), prompt);
    if expected.get("error").is_some() {
        assert!(render(false).is_err(), "{what}: rendered {:?}", render(false));
        return;
    }
    let text = render(false).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    assert_eq!(fnv(without_date(&text).bytes()), expected["text"].as_str().unwrap(), "{what}: {text}");
    let prompt = render(true).unwrap();
    assert_eq!(fnv(without_date(&prompt).bytes()), expected["prompt"].as_str().unwrap(), "{what}: {prompt}");
    let turns = assistant_turns(template, conversation, 0);
    if expected.get("inconsistent").is_some() {
        // Put together from the turns as they are written last, or refused.
        assert!(turns.is_err() || turns.is_ok_and(|turns| turns.as_written_last || turns.text == text), "{what}");
        return;
    }
    let turns = turns.unwrap_or_else(|problem| panic!("{what}: {problem}"));
    if let Some(expected) = expected.get("turns") {
        let ranges: Vec<_> = turns.turns.iter().map(|range| [range.start, range.end]).collect();
        assert_eq!(json!(ranges), *expected, "{what}: {text}");
    }
}

fn check_tokens(what: &str, ids: &[u32], trained: &[bool], expected: &Value) {
    let counts = [trained.len(), trained.iter().filter(|t| **t).count()];
    assert_eq!(json!(counts), expected["tokens"], "{what}");
    assert_eq!(fnv(ids.iter().flat_map(|id| id.to_le_bytes())), expected["ids"].as_str().unwrap(), "{what}");
    assert_eq!(fnv(trained.iter().map(|t| u8::from(*t))), expected["mask"].as_str().unwrap(), "{what}");
}

/// One conversation through the whole reader.
fn read_one(tokenizer: &Tokenizer, conversation: &Conversation, settings: &DataSettings) -> (Vec<u32>, Vec<bool>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("one.jsonl");
    let record = json!({"messages": conversation.messages, "tools": conversation.tools});
    std::fs::write(&path, record.to_string()).unwrap();
    // The size of the vocabulary bounds lists of tokens alone.
    let mut dataset = read_with(&path, Some(tokenizer), settings, usize::MAX).unwrap();
    let example = dataset.examples.remove(0);
    (example.input_ids, example.trained)
}

#[test]
fn the_models_own_templates_give_the_texts_tokens_and_masks_of_transformers() {
    if !shared_is_there() {
        return;
    }
    let settings = DataSettings { max_seq_len: 1 << 16, ..Default::default() };
    let mut compared = 0;
    for case in expected("own") {
        let (name, data) = (case["tokenizer"].as_str().unwrap(), case["data"].as_str().unwrap());
        let dir = Path::new(SHARED).join("tokenizers").join(name);
        let tokenizer = Tokenizer::from_tokenizer_dir(&dir).unwrap();
        let template = ChatTemplate::load(&dir, None, tokenizer.special_tokens().unwrap()).unwrap().unwrap();
        let examples = case["examples"].as_array().unwrap();
        for (index, (conversation, expected)) in conversations(data, COUNT).iter().zip(examples).enumerate() {
            let what = format!("{name}, {data} {index}");
            check_texts(&what, &template, conversation, expected);
            if expected.get("ids").is_some() {
                let (ids, trained) = read_one(&tokenizer, conversation, &settings);
                check_tokens(&what, &ids, &trained, expected);
                compared += 1;
            }
        }
    }
    assert!(compared > 350, "only {compared} masks were compared");
}

#[test]
fn template_files_give_the_texts_and_turns_of_transformers() {
    if !shared_is_there() {
        return;
    }
    let dir = Path::new(SHARED).join("tokenizers/tinyllama-1.1b-chat");
    let tokens = Tokenizer::from_tokenizer_dir(&dir).unwrap().special_tokens().unwrap();
    for case in expected("files") {
        let (file, data) = (case["template"].as_str().unwrap(), case["data"].as_str().unwrap());
        let path = Path::new(SHARED).join("chat_templates").join(file);
        let template = ChatTemplate::load(&dir, path.to_str(), tokens.clone()).unwrap().unwrap();
        let examples = case["examples"].as_array().unwrap();
        for (index, (conversation, expected)) in conversations(data, COUNT).iter().zip(examples).enumerate() {
            check_texts(&format!("{file}, {data} {index}"), &template, conversation, expected);
        }
    }
}

#[test]
fn generation_regions_give_the_masks_of_transformers() {
    if !shared_is_there() {
        return;
    }
    for case in expected("marked") {
        let (name, data) = (case["tokenizer"].as_str().unwrap(), case["data"].as_str().unwrap());
        let tokenizer = Tokenizer::from_tokenizer_dir(&Path::new(SHARED).join("tokenizers").join(name)).unwrap();
        let chat_template = Some(format!("{FIXTURES}/marked.jinja"));
        let settings = DataSettings { max_seq_len: 1 << 16, chat_template, ..Default::default() };
        let examples = case["examples"].as_array().unwrap();
        for (index, (conversation, expected)) in conversations(data, COUNT).iter().zip(examples).enumerate() {
            let (ids, trained) = read_one(&tokenizer, conversation, &settings);
            check_tokens(&format!("marked, {data} {index}"), &ids, &trained, expected);
        }
    }
}

#[test]
fn the_end_of_turn_of_another_tokenizer_is_ordinary_text() {
    if !shared_is_there() {
        return;
    }
    let tokenizer = Tokenizer::from_tokenizer_dir(&Path::new(SHARED).join("tokenizers/llama-2")).unwrap();
    let chat_template = Some("chatml".to_owned());
    let settings = DataSettings { max_seq_len: 1 << 16, chat_template, ..Default::default() };
    let read =
        |settings: &DataSettings| read_with(&data_file("gsm8k"), Some(&tokenizer), settings, tokenizer.vocabulary());
    let message = read(&settings).unwrap().report.to_string();
    assert!(message.contains("1000 of 1000: the chat template ends turns with \"<|im_end|>\""), "{message}");
    // Nothing ends a turn.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endless.jinja");
    std::fs::write(&path, "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}").unwrap();
    let chat_template = Some(path.display().to_string());
    let message = read(&DataSettings { chat_template, ..settings }).unwrap_err().to_string();
    assert!(message.contains("1000 of 1000 examples cannot be trained on"), "{message}");
    assert!(
        message.contains("is no special token of this tokenizer: the model would never learn to stop"),
        "{message}"
    );
}

#[test]
fn all_thousand_examples_of_gsm8k_have_the_texts_tokens_and_masks_of_transformers_with_every_tokenizer() {
    if !shared_is_there() {
        return;
    }
    let settings = DataSettings { max_seq_len: 1 << 16, packing: true, ..Default::default() };
    let cases = expected("gsm8k");
    assert_eq!(cases.len(), 5);
    for case in cases {
        let name = case["tokenizer"].as_str().unwrap();
        let dir = Path::new(SHARED).join("tokenizers").join(name);
        let tokenizer = Tokenizer::from_tokenizer_dir(&dir).unwrap();
        let template = ChatTemplate::load(&dir, None, tokenizer.special_tokens().unwrap()).unwrap().unwrap();
        let render = |c: Conversation| template.render(&c.messages, None, false).unwrap();
        let texts: String = conversations("gsm8k", usize::MAX).into_iter().map(render).collect();
        assert_eq!(fnv(texts.bytes()), case["texts"].as_str().unwrap(), "{name}");

        let dataset = read_with(&data_file("gsm8k"), Some(&tokenizer), &settings, tokenizer.vocabulary()).unwrap();
        assert_eq!((dataset.report.read, dataset.report.kept), (1000, 1000));
        let ids: Vec<u32> = dataset.examples.iter().flat_map(|example| example.input_ids.clone()).collect();
        let trained: Vec<bool> = dataset.examples.iter().flat_map(|example| example.trained.clone()).collect();
        assert_eq!(json!([trained.len(), trained.iter().filter(|t| **t).count()]), case["tokens"], "{name}");
        assert_eq!(fnv(ids.iter().flat_map(|id| id.to_le_bytes())), case["ids"].as_str().unwrap(), "{name}");
        assert_eq!(fnv(trained.iter().map(|t| u8::from(*t))), case["masks"].as_str().unwrap(), "{name}");

        let eos = tokenizer.eos().unwrap();
        for example in &dataset.examples {
            let mut trained = example.input_ids.iter().zip(&example.trained).filter(|(_, trained)| **trained);
            assert!(trained.any(|(id, _)| *id == eos), "{name}: the end token is not trained on");
        }
    }
}
