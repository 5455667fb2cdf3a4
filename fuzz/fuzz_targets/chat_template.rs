//! A chat template, rendered over a conversation with tools, and its assistant turns.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::sample::Conversation;
use loraine::data::template::ChatTemplate;
use loraine::data::turns::assistant_turns;
use serde_json::{Map, Value, json};

static CONVERSATION: LazyLock<Conversation> = LazyLock::new(|| {
    let messages = json!([
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": " caf\u{e9}? "},
        {"role": "assistant", "content": "Yes.", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}]}
    ]);
    let messages = messages.as_array().cloned().unwrap_or_default();
    let tools = Some(json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]));
    Conversation { messages, prompt_len: 2, is_completion: false, tools }
});

fuzz_target!(|text: &str| {
    let special: Map<String, Value> = Map::from_iter([("eos_token".to_owned(), json!("</s>"))]);
    let Ok(template) = ChatTemplate::new(text, "the template".into(), special) else { return };
    if let Ok(turns) = assistant_turns(&template, &CONVERSATION) {
        assert!(turns.turns.iter().all(|range| turns.text.get(range.clone()).is_some()), "a turn cuts a character");
    }
});
