//! Messages as other programs and services write them, in the form `{"role", "content"}` of chat templates: pairs of input and output
//! (XTuner), texts in turn, columns of roles and contents (tables of Python's datasets), content blocks (Anthropic) and parts (Gemini).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// The messages of a list in one of these forms; those of other lists as they are.
pub(super) fn usual(list: &[Value]) -> Vec<Value> {
    if is_talk(list) {
        let roles = ["user", "assistant"].into_iter().cycle();
        return list.iter().zip(roles).map(|(text, role)| json!({ "role": role, "content": text })).collect();
    }
    let mut called = HashMap::new();
    list.iter().flat_map(|value| of_one(value, &mut called)).collect()
}

/// The rows of an object that holds a list for each field, such as `{"role": [...], "content": [...]}`.
pub(super) fn rows(fields: &Map<String, Value>) -> Option<Vec<Value>> {
    let is_role = |name: &String| name == "role" || name == "from";
    let lists: Option<Vec<(&String, &Vec<Value>)>> =
        fields.iter().map(|(name, value)| Some((name, value.as_array()?))).collect();
    let lists = lists.filter(|lists| lists.iter().any(|(name, _)| is_role(name)))?;
    let count = lists.first()?.1.len();
    if lists.iter().any(|(_, values)| values.len() != count) {
        return None;
    }
    let row = |at: usize| lists.iter().map(|(name, values)| ((*name).clone(), values[at].clone())).collect();
    Some((0..count).map(|at| Value::Object(row(at))).collect())
}

/// True for texts that two speak in turn, the user first.
pub(super) fn is_talk(list: &[Value]) -> bool {
    list.len() > 1 && list.iter().all(Value::is_string)
}

/// True for an object that holds messages in one of these forms.
pub(super) fn is_foreign(value: &Value) -> bool {
    value.get("parts").is_some_and(Value::is_array) || is_pair(value)
}

fn is_pair(value: &Value) -> bool {
    let is_text = |name: &str| value.get(name).is_some_and(Value::is_string);
    is_text("input") && is_text("output") && value.get("role").is_none() && value.get("from").is_none()
}

/// The messages of one element. `called` has the names of the functions that were called so far, by the ids of the calls.
fn of_one(value: &Value, called: &mut HashMap<String, Value>) -> Vec<Value> {
    let Value::Object(fields) = value else { return vec![value.clone()] };
    if is_pair(value) {
        let parts = [("system", "system"), ("user", "input"), ("assistant", "output")];
        let message = |(role, name): (&str, &str)| {
            let text = fields.get(name)?.as_str().filter(|text| !text.is_empty())?;
            Some(json!({ "role": role, "content": text }))
        };
        return parts.into_iter().filter_map(message).collect();
    }
    let mut fields = fields.clone();
    if let Some(Value::Array(parts)) = fields.get("parts")
        && !fields.contains_key("content")
    {
        let parts = parts.iter().map(part_of_gemini).collect();
        fields.shift_remove("parts");
        fields.insert("content".to_owned(), Value::Array(parts));
    }
    let role = fields.get("role").and_then(Value::as_str).unwrap_or_default();
    let is_empty = fields.get("content").is_none_or(Value::is_null) && fields.get("value").is_none();
    if ["system", "developer"].contains(&role) && is_empty {
        return Vec::new();
    }
    match fields.shift_remove("content") {
        Some(Value::Array(blocks)) => of_blocks(fields, blocks, called),
        content => {
            fields.extend(content.map(|content| ("content".to_owned(), content)));
            vec![Value::Object(fields)]
        }
    }
}

/// A part of Gemini's `parts` as a content block.
fn part_of_gemini(part: &Value) -> Value {
    let of = |name: &str| part.get(name).or_else(|| part.get(snake(name)));
    if let Some(call) = of("functionCall") {
        return json!({ "type": "tool_use", "name": call["name"], "input": call.get("args").unwrap_or(&json!({})) });
    }
    if let Some(response) = of("functionResponse") {
        let content = response["response"].to_string();
        return json!({ "type": "tool_result", "name": response["name"], "content": content });
    }
    match part.get("text") {
        Some(text) => json!({ "type": "text", "text": text }),
        None => {
            let kind = part.as_object().and_then(|fields| fields.keys().next()).cloned();
            json!({ "type": kind.unwrap_or_else(|| "unknown".to_owned()) })
        }
    }
}

/// `functionCall` as `function_call`.
fn snake(name: &str) -> String {
    name.chars()
        .flat_map(|c| c.is_ascii_uppercase().then_some('_').into_iter().chain([c.to_ascii_lowercase()]))
        .collect()
}

/// The messages of content blocks: calls and thoughts become fields of the message, and each result a message of the tool. Blocks that are
/// no text stay, for the error that names them.
fn of_blocks(fields: Map<String, Value>, blocks: Vec<Value>, called: &mut HashMap<String, Value>) -> Vec<Value> {
    let (mut messages, mut rest, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for mut block in blocks {
        let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
        let id = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind {
            "input_text" | "output_text" => {
                block["type"] = "text".into();
                rest.push(block);
            }
            "thinking" => thoughts.push(id("thinking")),
            "tool_use" => {
                let function = json!({ "name": block["name"], "arguments": block["input"] });
                called.insert(id("id"), block["name"].clone());
                let mut call = json!({ "type": "function", "function": function });
                if let Some(id) = block.get("id") {
                    call["id"] = id.clone();
                }
                calls.push(call);
            }
            "tool_result" => {
                let name = block.get("name").or_else(|| called.get(&id("tool_use_id"))).cloned();
                let mut result = json!({ "role": "tool", "content": text_of(&block["content"]) });
                for (key, value) in [("name", name), ("tool_call_id", block.get("tool_use_id").cloned())] {
                    if let Some(value) = value {
                        result[key] = value;
                    }
                }
                messages.push(result);
            }
            _ => rest.push(block),
        }
    }
    if rest.is_empty() && calls.is_empty() && !messages.is_empty() {
        return messages;
    }
    let mut own = fields;
    own.insert("content".to_owned(), if rest.is_empty() && !calls.is_empty() { "".into() } else { Value::Array(rest) });
    if !calls.is_empty() {
        own.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    if !thoughts.is_empty() {
        own.insert("reasoning_content".to_owned(), thoughts.join("\n").into());
    }
    messages.push(Value::Object(own));
    messages
}

/// The text of a tool's result: a string, or the texts of its blocks.
fn text_of(content: &Value) -> String {
    let text = |block: &Value| block.get("text").and_then(Value::as_str).map(str::to_owned);
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            blocks.iter().map(|block| text(block).unwrap_or_else(|| block.to_string())).collect::<Vec<_>>().join("\n")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: Value) -> Value {
        Value::Array(usual(list.as_array().unwrap()))
    }

    #[test]
    fn pairs_texts_and_columns_become_messages() {
        let talk = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(of(json!(["q", "a"])), talk);
        assert_eq!(of(json!([{"input": "q", "output": "a"}])), talk);
        let with_system = of(json!([{"system": "s", "input": "q", "output": "a"}, {"input": "r", "output": "b"}]));
        let roles: Vec<_> = with_system.as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
        let columns = json!({"role": ["user", "assistant"], "content": ["q", "a"]});
        assert_eq!(Value::Array(rows(columns.as_object().unwrap()).unwrap()), talk);
        let uneven = json!({"role": ["user", "assistant"], "content": ["q"]});
        assert_eq!(rows(uneven.as_object().unwrap()), None);
        assert_eq!(of(talk.clone()), talk);
        assert_eq!(of(json!([{"role": "system", "content": null}, talk[0]])), json!([talk[0]]));
    }

    #[test]
    fn content_blocks_become_calls_results_and_thoughts() {
        let list = json!([
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "I look.", "signature": "x"},
                {"type": "text", "text": "Wait."}, {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "clear"}]},
                {"type": "text", "text": "And?"}]},
        ]);
        let expected = json!([
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Wait."}], "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}, "id": "t1"}],
                "reasoning_content": "I look."},
            {"role": "tool", "content": "clear", "name": "weather", "tool_call_id": "t1"},
            {"role": "user", "content": [{"type": "text", "text": "And?"}]},
        ]);
        assert_eq!(of(list), expected);
        let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
        assert_eq!(of(image.clone()), image);
        let responses = json!([{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]);
        assert_eq!(of(responses)[0]["content"], json!([{"type": "text", "text": "q"}]));
    }

    #[test]
    fn parts_of_gemini_become_contents() {
        let list = json!([
            {"role": "user", "parts": [{"text": "Weather?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}]},
            {"role": "function", "parts": [{"function_response": {"name": "weather", "response": {"sky": "clear"}}}]},
            {"role": "user", "parts": [{"inlineData": {}}]},
        ]);
        let expected = json!([
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "model", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
            {"role": "tool", "content": "{\"sky\":\"clear\"}", "name": "weather"},
            {"role": "user", "content": [{"type": "inlineData"}]},
        ]);
        assert_eq!(of(list), expected);
    }
}
