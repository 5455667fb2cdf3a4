//! Finds what a chat template leaves out of a conversation: roles, fields and turns that do not reach the text.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::Value;

use super::messages::{KNOWN_ROLES, REASONING, usual_role};
use super::report::Tally;
use super::sample::Conversation;
use super::template::ChatTemplate;

/// Stands for a message's content to see whether it reaches the text.
const PROBE: &str = "loraineprobe";

/// What a template does with messages of each role, found out on the first of them.
#[derive(Default)]
pub(super) struct Habits {
    /// True for a role whose content reaches the text.
    leaves_text: RefCell<BTreeMap<String, bool>>,
    /// True for a field that the template's text names.
    reads: RefCell<BTreeMap<String, bool>>,
}

/// Refuses roles that neither loraine nor the template knows: a template may skip them, or take them for another one.
///
/// # Errors
/// A sentence that names the role and the known ones.
pub(super) fn check_roles(conversation: &Conversation, template: &ChatTemplate) -> Result<(), String> {
    for (at, message) in conversation.messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if usual_role(role).is_none() && !mentions(template, role) {
            let number = at + 1;
            return Err(format!("message {number} has the role `{role}`, which is not known; roles are {KNOWN_ROLES}"));
        }
    }
    Ok(())
}

/// Counts the fields, tools and turns of a conversation that the template does not write.
pub(super) fn count_leftovers(conversation: &Conversation, template: &ChatTemplate, habits: &Habits, tally: &Tally) {
    let empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        other => other.is_null(),
    };
    if conversation.tools.is_some() && !mentions(template, "tools") {
        tally.add("tools");
    }
    for (at, message) in conversation.messages.iter().enumerate() {
        for (name, value) in message.as_object().into_iter().flatten() {
            let name = name.as_str();
            if !matches!(name, "role" | "content") && !empty(value) && !reads(name, template, habits) {
                tally.add(format!("{name} of messages"));
            }
        }
        let role = message["role"].as_str().unwrap_or_default();
        let has_text = message["content"].as_str().is_some_and(|text| !text.trim().is_empty());
        if has_text && !leaves_text(role, at, conversation, template, habits) {
            tally.add(format!("messages of the role {role}"));
        }
    }
}

/// Finds out once for each field of messages whether the template reads it. Reasoning reaches the template under each of its names.
fn reads(name: &str, template: &ChatTemplate, habits: &Habits) -> bool {
    if let Some(known) = habits.reads.borrow().get(name) {
        return *known;
    }
    let reads = match REASONING.contains(&name) {
        true => REASONING.iter().any(|name| mentions(template, name)),
        false => mentions(template, name),
    };
    habits.reads.borrow_mut().insert(name.to_owned(), reads);
    reads
}

/// True if the template's text names `word` as a role or a field, quoted or as `.word`, or as the variable `tools`.
fn mentions(template: &ChatTemplate, word: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (main, for_tools) = template.texts();
    [Some(main), for_tools].into_iter().flatten().any(|text| {
        text.match_indices(word).any(|(at, _)| {
            let (before, after) = (&text[..at], &text[at + word.len()..]);
            let named = before.ends_with(['\'', '"', '.']) || word == "tools";
            named && !after.starts_with(is_word) && !before.ends_with(is_word)
        })
    })
}

/// Finds out once for each role whether the content of its messages reaches the text.
fn leaves_text(role: &str, at: usize, conversation: &Conversation, template: &ChatTemplate, habits: &Habits) -> bool {
    if let Some(known) = habits.leaves_text.borrow().get(role) {
        return *known;
    }
    let mut messages = conversation.messages.clone();
    messages[at]["content"] = PROBE.into();
    let text = template.render(&messages, conversation.tools.as_ref(), false);
    // A template that refuses the conversation says so itself.
    let leaves = text.map_or(true, |text| text.contains(PROBE));
    habits.leaves_text.borrow_mut().insert(role.to_owned(), leaves);
    leaves
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CHATML: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";

    /// What was counted.
    fn leftovers(text: &str, messages: &Value) -> Result<Vec<(String, usize)>, String> {
        let template = ChatTemplate::new(text, "t".into(), Default::default()).unwrap();
        let conversation = Conversation { messages: messages.as_array().unwrap().clone(), ..Default::default() };
        check_roles(&conversation, &template)?;
        let tally = Tally::default();
        count_leftovers(&conversation, &template, &Habits::default(), &tally);
        Ok(tally.counts().into_iter().collect())
    }

    #[test]
    fn unknown_roles_are_refused_by_name_unless_the_template_knows_them() {
        let critic = json!([{"role": "user", "content": "q"}, {"role": "critic", "content": "c"}]);
        let message = leftovers(CHATML, &critic).unwrap_err();
        assert!(
            message.contains("message 2 has the role `critic`") && message.contains("roles are system, "),
            "{message}"
        );
        let knows = CHATML.replace('<', "{% if m.role == 'critic' %}!{% endif %}<");
        assert_eq!(leftovers(&knows, &critic).unwrap(), []);
    }

    #[test]
    fn turns_without_a_trace_are_counted() {
        let silent = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}{% endif %}{% endfor %}";
        let messages = json!([{"role": "user", "content": "q"}, {"role": "tool", "content": "4"},
            {"role": "tool", "content": "5"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(leftovers(silent, &messages).unwrap(), [("messages of the role tool".to_owned(), 2)]);
        assert_eq!(leftovers(CHATML, &messages).unwrap(), []);
    }

    #[test]
    fn fields_that_the_template_does_not_name_are_counted() {
        let messages = json!([{"role": "user", "content": "q", "name": "Ann", "id": ""},
            {"role": "assistant", "content": "a", "reasoning": "r", "tool_calls": [{"id": "1"}]}]);
        let counted: Vec<_> = leftovers(CHATML, &messages).unwrap().into_iter().map(|(what, _)| what).collect();
        assert_eq!(counted, ["name of messages", "reasoning of messages", "tool_calls of messages"]);
        let reads = format!(
            "{CHATML}{{{{ messages[0]['name'] }}}}{{{{ m.reasoning_content }}}}{{% if m.tool_calls %}}{{% endif %}}"
        );
        assert_eq!(leftovers(&reads, &messages).unwrap(), []);
    }
}
