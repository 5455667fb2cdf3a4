//! Messages of conversations in the form that chat templates expect, from the forms in which data sets hold them.

use serde_json::{Value, json};

use super::foreign_messages;
use super::record::{Record, shortened};

/// The messages of a record, and which of them are not trained on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Messages {
    /// JSON objects with `role` and `content`, in the order of the conversation.
    pub list: Vec<Value>,
    /// Places of the assistant's messages that the record excludes from training.
    pub untrained: Vec<usize>,
}

/// Roles that every chat template may know, for messages.
pub const KNOWN_ROLES: &str =
    "system, developer, user (also human), assistant (also gpt, model, bot), tool (also observation) and function_call";

/// Maps a data set's role name to the name that templates use. `None` for an unknown role.
pub fn usual_role(name: &str) -> Option<&'static str> {
    Some(match name.trim().to_ascii_lowercase().as_str() {
        "system" => "system",
        "developer" => "developer",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bard" | "bing" | "model" | "bot" | "ai" | "chatbot" => "assistant",
        "tool" | "observation" | "function_response" | "function" | "ipython" | "tool_response" => "tool",
        _ => return None,
    })
}

/// Makes a message.
pub fn message(role: &str, content: String) -> Value {
    Value::Object([("role".to_owned(), role.into()), ("content".to_owned(), content.into())].into_iter().collect())
}

/// True for a message of the assistant.
pub fn is_assistant(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "assistant")
}

/// True if the first message is of the system or the developer.
pub fn starts_with_system(messages: &[Value]) -> bool {
    let role = messages.first().and_then(|message| message.get("role"));
    role.is_some_and(|role| role == "system" || role == "developer")
}

/// Removes null fields of objects at every depth: a table fills them in for each record that lacks a field.
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Reads the messages of the field `field`: a list, or one as JSON in a string, as tables of text hold it, in the forms of
/// `foreign_messages` too.
///
/// # Errors
/// The rest of a sentence about the record: the field holds something else.
pub fn messages(value: &Value, field: &str) -> Result<Messages, String> {
    let list = match value {
        Value::Array(list) => Some(foreign_messages::usual(list)),
        Value::Object(fields) => foreign_messages::rows(fields),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(list)) => Some(foreign_messages::usual(&list)),
            _ => None,
        },
        _ => None,
    };
    let list = list.ok_or_else(|| wrong_list(field, value))?;
    let mut messages = Messages::default();
    for (at, value) in list.iter().enumerate() {
        let (message, trained) = one(value).map_err(|problem| format!("`{field}`, message {}: {problem}", at + 1))?;
        if !trained {
            messages.untrained.push(at);
        }
        messages.list.push(message);
    }
    Ok(messages)
}

fn wrong_list(field: &str, value: &Value) -> String {
    let of_python = value.as_str().is_some_and(|text| text.trim_start().starts_with("[{'"));
    let advice = match of_python {
        true => {
            "; it is a list as Python shows it: save the data as JSON, with DataFrame.to_json(..., orient='records', lines=True)"
        }
        false => "",
    };
    format!("`{field}` is {}, but must be a list of messages{advice}", shortened(value))
}

/// Normalizes one message to `role` and `content`, without null fields, and says whether it may be trained on.
fn one(value: &Value) -> Result<(Value, bool), String> {
    let Value::Object(mut fields) = without_nulls(value) else {
        return Err(r#"must be {"role", "content"} or {"from", "value"}"#.into());
    };
    for (name, other) in [("role", "from"), ("content", "value")] {
        if !fields.contains_key(name)
            && let Some(value) = fields.remove(other)
        {
            fields.insert(name.into(), value);
        }
    }
    let Some(role) = fields.get("role").and_then(Value::as_str).map(str::to_owned) else {
        return Err("has no `role` (or `from`) that is a string".into());
    };
    let calls = ["function_call", "tool_call"].iter().any(|call| role.trim().eq_ignore_ascii_case(call));
    if calls {
        let call = tool_calls(fields.get("content")).map_err(|problem| format!("its role is {role}, but {problem}"))?;
        fields.insert("role".into(), "assistant".into());
        fields.insert("content".into(), "".into());
        fields.insert("tool_calls".into(), call);
    } else if let Some(role) = usual_role(&role) {
        fields.insert("role".into(), role.into());
    }
    // The form of tool calls before there were several in a message.
    if let Some(call) = fields.remove("function_call") {
        fields.insert("tool_calls".into(), json!([{"type": "function", "function": call}]));
    }
    if fields.get("tool_calls").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        fields.remove("tool_calls");
    }
    match fields.get("content") {
        Some(Value::String(_) | Value::Array(_)) => {}
        None if fields.contains_key("tool_calls") => {
            fields.insert("content".into(), String::new().into());
        }
        _ => return Err("has no `content` (or `value`) that is a string".into()),
    }
    let trained = take_weight(&mut fields)?;
    Ok((Value::Object(fields), trained))
}

/// Takes the fields that exclude a message from training: `weight` of 0, or `train` (or `training`) of false.
fn take_weight(fields: &mut Record) -> Result<bool, String> {
    let mut trained = true;
    if let Some(weight) = fields.remove("weight") {
        trained &= match weight.as_f64() {
            Some(0.0) => false,
            Some(1.0) => true,
            _ => return Err(format!("its `weight` is {}, but must be 0 or 1", shortened(&weight))),
        };
    }
    for name in ["train", "training"] {
        match fields.remove(name) {
            None => {}
            Some(Value::Bool(train)) => trained &= train,
            Some(other) => return Err(format!("its `{name}` is {}, but must be true or false", shortened(&other))),
        }
    }
    Ok(trained)
}

/// Reads the calls that a message of the role `function_call` holds: an object with name and arguments or a list of them, mostly as
/// JSON in a string.
fn tool_calls(content: Option<&Value>) -> Result<Value, String> {
    let parsed = match content {
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        other => other.cloned(),
    };
    let calls = match parsed {
        Some(Value::Array(list)) => list,
        Some(object @ Value::Object(_)) => vec![object],
        _ => Vec::new(),
    };
    let call = |call: Value| {
        let call = call.get("function").cloned().unwrap_or(call);
        call.get("name").is_some_and(Value::is_string).then(|| json!({"type": "function", "function": call}))
    };
    match calls.into_iter().map(call).collect::<Option<Vec<_>>>() {
        Some(calls) if !calls.is_empty() => Ok(calls.into()),
        _ => Err(r#"its text is not JSON of the form {"name": ..., "arguments": {...}}"#.into()),
    }
}

/// Returns the tools of a conversation, which some files hold as JSON in a string.
///
/// # Errors
/// The rest of a sentence about the record: the field holds no list.
pub fn tools(value: Option<&Value>) -> Result<Option<Value>, String> {
    let list = |list: Vec<Value>| (!list.is_empty()).then(|| without_nulls(&Value::Array(list)));
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) => Ok(list(tools.clone())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Array(tools)) => Ok(list(tools)),
            _ => Err("`tools` is a string that holds no JSON list".into()),
        },
        Some(other) => Err(format!("`tools` is {}, but must be a list", shortened(other))),
    }
}

/// Functions in the older form, as tools.
///
/// # Errors
/// As [`tools`].
pub fn functions_as_tools(value: &Value) -> Result<Option<Value>, String> {
    let Some(Value::Array(functions)) = tools(Some(value))? else { return Ok(None) };
    Ok(Some(functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect()))
}

/// Earlier pairs of instruction and output, as messages.
///
/// # Errors
/// The rest of a sentence about the record: the field holds no pairs of texts.
pub fn history(value: &Value, field: &str) -> Result<Vec<Value>, String> {
    let wrong = || format!("`{field}` is {}, but must be a list of pairs of texts", shortened(value));
    let parsed;
    let pairs = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(pairs) => pairs,
        Value::String(text) if text.trim().is_empty() => return Ok(Vec::new()),
        Value::String(text) => {
            parsed = serde_json::from_str::<Value>(text).map_err(|_| wrong())?;
            parsed.as_array().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    let mut messages = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        let Some([Value::String(question), Value::String(answer)]) = pair.as_array().map(Vec::as_slice) else {
            return Err(wrong());
        };
        messages.push(message("user", question.clone()));
        messages.push(message("assistant", answer.clone()));
    }
    Ok(messages)
}

/// Fields of a message that the assistant's reasoning stands in, by the names of different templates.
pub const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_other_formats_get_their_usual_names() {
        let list = json!([{"from": "Human", "value": "q"}, {"role": "GPT", "content": "a"}, {"role": "critic", "content": "c"}]);
        let roles: Vec<_> = messages(&list, "m").unwrap().list.iter().map(|m| m["role"].clone()).collect();
        assert_eq!(roles, ["user", "assistant", "critic"]);
        let text = Value::from(list.to_string());
        assert_eq!(messages(&text, "m").unwrap(), messages(&list, "m").unwrap());
        assert!(messages(&"plain".into(), "m").unwrap_err().contains("must be a list of messages"));
    }

    #[test]
    fn a_function_call_is_a_turn_of_the_assistant() {
        let call = json!({"name": "weather", "arguments": {"city": "Oslo"}});
        let expected = json!({"role": "assistant", "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]});
        for value in [Value::from(call.to_string()), Value::from(json!([call]).to_string()), call.clone()] {
            let list = json!([{"from": "function_call", "value": value}]);
            assert_eq!(messages(&list, "m").unwrap().list[0], expected);
        }
        let older = json!([{"role": "assistant", "content": null, "function_call": call}]);
        assert_eq!(messages(&older, "m").unwrap().list[0]["tool_calls"], expected["tool_calls"]);
        let wrong = messages(&json!([{"from": "function_call", "value": "weather(Oslo)"}]), "m").unwrap_err();
        assert!(wrong.contains("message 1: its role is function_call, but its text is not JSON"), "{wrong}");
    }

    #[test]
    fn messages_of_weight_0_are_not_trained_on() {
        let turn = |key: &str, value: Value| json!({"role": "assistant", "content": "a", key: value});
        let list = json!([
            turn("weight", json!(0)),
            turn("weight", json!(1)),
            turn("train", json!(false)),
            turn("x", json!(1))
        ]);
        let read = messages(&list, "m").unwrap();
        assert_eq!(read.untrained, [0, 2]);
        assert_eq!(read.list[0], json!({"role": "assistant", "content": "a"}));
        let half = messages(&json!([turn("weight", json!(0.5))]), "m").unwrap_err();
        assert!(half.contains("`weight` is 0.5, but must be 0 or 1"), "{half}");
    }

    #[test]
    fn nulls_of_tables_are_removed_at_every_depth() {
        let with = json!({"a": null, "b": [{"c": null, "d": 1}, null], "e": {"f": null}});
        assert_eq!(without_nulls(&with), json!({"b": [{"d": 1}, null], "e": {}}));
    }
}
