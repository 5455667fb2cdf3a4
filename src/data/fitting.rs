//! Finds the form of a conversation that its chat template takes: templates differ in how they want texts and tool arguments.

use std::borrow::Cow;

use serde_json::Value;

use super::sample::Conversation;
use super::template::{ChatTemplate, Input};

/// A change of one message.
type Change = fn(&mut Value);

/// Returns the conversation in the first form that the template renders.
///
/// Arguments of tool calls are objects, also where the data holds them as JSON in a string, since templates write them as JSON. A
/// template that joins them to its own text gets a string instead. A content that is a list of text parts becomes one text, and a
/// developer message a system message, where the template does not know them.
///
/// # Errors
/// The template's own refusal, or a part that is no text.
pub fn fitted<'a>(template: &ChatTemplate, conversation: &'a Conversation) -> Result<Cow<'a, Conversation>, String> {
    let special = |message: &Value| {
        let has = |field: &str| message.get(field).is_some();
        has("tool_calls") || is_developer(message) || message.get("content").is_some_and(Value::is_array)
    };
    let wants_parts = template.wants_parts();
    if !wants_parts && !conversation.messages.iter().any(special) {
        return Ok(Cow::Borrowed(conversation));
    }
    let (as_it_is, mut tried, mut refusal): (Change, Vec<Vec<Value>>, _) = (|_| (), Vec::new(), None);
    let as_it_is = if wants_parts { as_parts } else { as_it_is };
    for arguments in [as_objects as Change, as_text] {
        for content in [as_it_is, join_parts] {
            for role in [as_it_is, developer_as_system] {
                let mut candidate = conversation.clone();
                for message in &mut candidate.messages {
                    [arguments, content, role].into_iter().for_each(|change| change(message));
                }
                if tried.contains(&candidate.messages) {
                    continue;
                }
                match problem(template, &candidate) {
                    None => return Ok(Cow::Owned(candidate)),
                    Some(found) => refusal = refusal.or(Some(found)),
                }
                tried.push(candidate.messages);
            }
        }
    }
    let other = |message: &Value| message.get("content").and_then(Value::as_array).and_then(|parts| other_part(parts));
    let parts = conversation.messages.iter().enumerate().find_map(|(at, message)| Some((at + 1, other(message)?)));
    Err(match parts {
        Some((number, kind)) => {
            format!("message {number}: `content` is a list with a part of type {kind}, but only text can be trained on")
        }
        None => refusal.unwrap_or_default(),
    })
}

/// The reason why the template does not take the conversation in this form.
fn problem(template: &ChatTemplate, conversation: &Conversation) -> Option<String> {
    let Conversation { messages, tools, variables, .. } = conversation;
    let input = Input { messages, tools: tools.as_ref(), variables: Some(variables) };
    let text = match template.render_input(&input, false) {
        Ok(rendered) => rendered.text,
        Err(refusal) => return Some(refusal),
    };
    let content = |message: &Value| message.get("content").cloned().unwrap_or_default();
    let unwritten = |message: &Value| {
        let parts = content(message).as_array().cloned().unwrap_or_default();
        parts.iter().filter_map(part_text).any(|part| !text.contains(part.trim()))
    };
    if messages.iter().any(unwritten) || messages.iter().any(|m| content(m).is_array()) && text.contains("{'type': ") {
        return Some(format!("the chat template ({}) takes no `content` that is a list of parts", template.source()));
    }
    let lost = |message: &&Value| {
        is_developer(message) && content(message).as_str().is_some_and(|content| !text.contains(content.trim()))
    };
    let lost = messages.iter().find(lost);
    lost.map(|_| format!("the chat template ({}) leaves the developer message out", template.source()))
}

fn is_developer(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "developer")
}

fn developer_as_system(message: &mut Value) {
    if is_developer(message) {
        message["role"] = "system".into();
    }
}

/// The text of a part of a content.
fn part_text(part: &Value) -> Option<&str> {
    part.as_str().or_else(|| part.get("text").filter(|_| part.get("type").is_none_or(|kind| kind == "text"))?.as_str())
}

/// The type of the first part that is no text.
fn other_part(parts: &[Value]) -> Option<String> {
    let part = parts.iter().find(|part| part_text(part).is_none())?;
    Some(part.get("type").and_then(Value::as_str).unwrap_or("unknown").to_owned())
}

/// Writes a content that is a text as a list of one part.
fn as_parts(message: &mut Value) {
    if let Some(content) = message.get_mut("content")
        && content.is_string()
    {
        *content = serde_json::json!([{ "type": "text", "text": content }]);
    }
}

/// Joins a content of text parts to one text.
fn join_parts(message: &mut Value) {
    let Some(content) = message.get_mut("content") else { return };
    let parts = content.as_array().and_then(|parts| parts.iter().map(part_text).collect::<Option<Vec<_>>>());
    if let Some(parts) = parts {
        *content = parts.concat().into();
    }
}

/// The arguments of every tool call of a message.
fn arguments(message: &mut Value) -> impl Iterator<Item = &mut Value> {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    calls.into_iter().flatten().filter_map(|call| {
        let call = if call.get("function").is_some_and(Value::is_object) { call.get_mut("function")? } else { call };
        call.get_mut("arguments")
    })
}

/// Parses tool arguments that are an object in a string.
fn as_objects(message: &mut Value) {
    for arguments in arguments(message) {
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).filter(Value::is_object);
        if let Some(parsed) = parsed {
            *arguments = parsed;
        }
    }
}

/// Writes tool arguments that are an object as JSON, as Python spaces it.
fn as_text(message: &mut Value) {
    for arguments in arguments(message) {
        if !arguments.is_string() {
            *arguments = super::template::json_text(arguments).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn fit(template: &str, messages: Value) -> Result<String, String> {
        let template = ChatTemplate::new(template, "a test".into(), Map::new()).unwrap();
        let messages = messages.as_array().unwrap().clone();
        let conversation = Conversation { messages, ..Default::default() };
        let fitted = fitted(&template, &conversation)?;
        template.render(&fitted.messages, None, false)
    }

    #[test]
    fn arguments_of_tool_calls_are_written_once() {
        let call = |arguments: Value| json!([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]);
        let json = "{{ messages[0].tool_calls[0].function.arguments|tojson }}";
        let joined = "{{ 'f' + messages[0].tool_calls[0].function.arguments }}";
        let (object, text) = (json!({"city": "Oslo"}), json!("{\"city\":\"Oslo\"}"));
        assert_eq!(fit(json, call(object.clone())).unwrap(), r#"{"city": "Oslo"}"#);
        assert_eq!(fit(json, call(text.clone())).unwrap(), r#"{"city": "Oslo"}"#);
        assert_eq!(fit(json, call(json!("no json"))).unwrap(), r#""no json""#);
        assert_eq!(fit(joined, call(object)).unwrap(), r#"f{"city": "Oslo"}"#);
        assert_eq!(fit(joined, call(text)).unwrap(), r#"f{"city":"Oslo"}"#);
    }

    #[test]
    fn text_parts_are_joined_where_the_template_wants_a_text() {
        let parts =
            json!([{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}]);
        for template in ["{{ messages[0].content + '!' }}", "{{ messages[0].content }}!"] {
            assert_eq!(fit(template, parts.clone()).unwrap(), "a b!");
        }
        let knows = "{% for part in messages[0].content %}[{{ part.text }}]{% endfor %}";
        assert_eq!(fit(knows, parts).unwrap(), "[a ][b]");
        let image = json!([{"role": "user", "content": [{"type": "image"}]}]);
        let message = fit("{{ messages[0].content + '!' }}", image).unwrap_err();
        assert!(message.contains("message 1: `content` is a list with a part of type image"), "{message}");
    }

    #[test]
    fn a_developer_is_the_system_where_the_template_knows_no_other() {
        let messages = json!([{"role": "developer", "content": "Be brief."}]);
        let knows = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}";
        assert_eq!(fit(knows, messages.clone()).unwrap(), "developer: Be brief.");
        let wants_parts = "{% for m in messages %}{% if m.content is not string %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}";
        assert_eq!(fit(wants_parts, json!([{"role": "user", "content": "a"}])).unwrap(), "[a]");
        let drops = "{% for m in messages %}{% if m.role == 'system' %}S {{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(fit(drops, messages).unwrap(), "S Be brief.");
    }
}
