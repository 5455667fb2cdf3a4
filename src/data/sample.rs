//! Turns the fields of a record into a sample: detects its shape and extracts text, prompt, completion or conversation.

use serde_json::{Map, Value};

use super::settings::{DataSettings, Shape, TrainOn};
use crate::setting::TRAIN_ON;
use crate::{Error, Result};

pub type Record = Map<String, Value>;

/// Content of one record, in one of four forms.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    Tokens { input_ids: Vec<u32>, trained: Vec<bool> },
    Text(String),
    Completion { prompt: String, completion: String },
    Chat(Conversation),
}

/// Messages with `role` and `content`, as chat templates expect them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Value>,
    /// Number of messages before the completion.
    pub prompt_len: usize,
    /// True if the record itself separates prompt and completion.
    pub is_completion: bool,
    pub tools: Option<Value>,
    /// Values of the template's variables: the record's `chat_template_kwargs`.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// Number of assistant turns before the completion.
    pub fn assistant_turns_in_prompt(&self) -> usize {
        self.messages.iter().take(self.prompt_len).filter(|message| is_assistant(message)).count()
    }
}

/// Returns the shape that the settings name or that the record's fields show; `None` if they show none.
pub fn shape_of(record: &Record, settings: &DataSettings) -> Option<Shape> {
    let named = |field: &Option<String>, shape: Shape| field.is_some().then_some(shape);
    let has = |field: &str| record.get(field).is_some_and(|value| !value.is_null());
    settings
        .shape
        .or(named(&settings.messages_field, Shape::Chat))
        .or(named(&settings.prompt_field, Shape::Completion))
        .or(named(&settings.completion_field, Shape::Completion))
        .or(named(&settings.text_field, Shape::Text))
        .or_else(|| {
            let shapes = [
                (Shape::Tokens, ["input_ids"].as_slice()),
                (Shape::Chat, &["messages"]),
                (Shape::Sharegpt, &["conversations"]),
                (Shape::Completion, &["prompt", "completion"]),
                (Shape::Alpaca, &["instruction", "output"]),
                (Shape::Text, &["text"]),
            ];
            shapes.into_iter().find(|(_, fields)| fields.iter().all(|field| has(field))).map(|(shape, _)| shape)
        })
}

/// Checks the settings against a shape and returns the conflict, if any.
pub fn check_train_on(shape: Shape, train_on: Option<TrainOn>) -> Result<()> {
    match (shape, train_on) {
        (Shape::Text | Shape::Tokens, Some(TrainOn::Completion | TrainOn::Assistant)) => {
            let problem = "have no completion and no assistant turn";
            let (shape, all) = (shape.name(), TRAIN_ON.is("all"));
            Err(Error::setting(
                TRAIN_ON,
                format!("examples of {shape} {problem}; leave {TRAIN_ON} out or choose {all}"),
            ))
        }
        _ => Ok(()),
    }
}

/// Makes the sample of a record of that shape. `chat` turns an instruction into a conversation instead of the Alpaca prompt.
pub fn sample_of(
    record: &Record,
    shape: Shape,
    settings: &DataSettings,
    vocab_size: usize,
    chat: bool,
) -> Result<Sample, String> {
    let field = |named: &Option<String>, usual: &str| named.clone().unwrap_or_else(|| usual.to_owned());
    match shape {
        Shape::Tokens => {
            let ids = record.get("input_ids").ok_or_else(|| missing("input_ids", record))?;
            let labels = record.get("labels").filter(|_| settings.train_on != Some(TrainOn::All));
            tokens(ids, labels, vocab_size)
        }
        Shape::Text => text(record, &field(&settings.text_field, "text")).map(|text| Sample::Text(text.to_owned())),
        Shape::Chat => conversation(record, &field(&settings.messages_field, "messages")),
        Shape::Sharegpt => conversation(record, &field(&settings.messages_field, "conversations")),
        Shape::Completion => completion(
            record,
            &field(&settings.prompt_field, "prompt"),
            &field(&settings.completion_field, "completion"),
        ),
        Shape::Alpaca => alpaca(record, chat),
    }
}

/// Error text for a record whose fields make no example.
pub fn unknown_shape(record: &Record) -> String {
    let supported = "{messages}, {conversations}, {prompt, completion}, {instruction, output}, {text} and {input_ids}";
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    format!("has the fields [{}], which make no supported example; supported are {supported}", fields.join(", "))
}

fn missing(field: &str, record: &Record) -> String {
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    format!("has no `{field}`, only the fields [{}]", fields.join(", "))
}

fn text<'a>(record: &'a Record, field: &str) -> Result<&'a str, String> {
    match record.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{field}` is {}, but must be a string", shortened(other))),
        None => Err(missing(field, record)),
    }
}

/// Takes token ids as they are. A label of -100 is not trained on; every other label must equal the token at its place.
fn tokens(ids: &Value, labels: Option<&Value>, vocab_size: usize) -> Result<Sample, String> {
    let list = |name: &str, value: &Value| -> Result<Vec<i64>, String> {
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_i64).collect());
        numbers.ok_or_else(|| format!("`{name}` must be a list of whole numbers"))
    };
    let id = |(at, &id): (usize, &i64)| match u32::try_from(id) {
        Ok(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(format!(
            "`input_ids` has {id} at element {at}, but the vocabulary ends at {}",
            vocab_size.saturating_sub(1)
        )),
    };
    let input_ids: Vec<u32> = list("input_ids", ids)?.iter().enumerate().map(id).collect::<Result<_, _>>()?;
    let Some(labels) = labels.filter(|labels| !labels.is_null()) else {
        return Ok(Sample::Tokens { trained: vec![true; input_ids.len()], input_ids });
    };
    let labels = list("labels", labels)?;
    if labels.len() != input_ids.len() {
        return Err(format!("has {} input_ids but {} labels", input_ids.len(), labels.len()));
    }
    let trained = labels.iter().zip(&input_ids).enumerate().map(|(at, (&label, &id))| match label {
        -100 => Ok(false),
        label if label == i64::from(id) => Ok(true),
        label => Err(format!("`labels` has {label} at element {at}, but must have -100 or the token there, {id}")),
    });
    Ok(Sample::Tokens { trained: trained.collect::<Result<_, _>>()?, input_ids })
}

fn completion(record: &Record, prompt_field: &str, completion_field: &str) -> Result<Sample, String> {
    let value = |field: &str| record.get(field).ok_or_else(|| missing(field, record));
    match (value(prompt_field)?, value(completion_field)?) {
        (Value::String(_), Value::String(completion)) if completion.is_empty() => {
            Err(format!("`{completion_field}` is empty, so there is nothing to learn"))
        }
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Sample::Completion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (Value::Array(prompt), Value::Array(completion)) => {
            let mut messages = list_of_messages(prompt, prompt_field)?;
            let prompt_len = messages.len();
            messages.extend(list_of_messages(completion, completion_field)?);
            let (tools, variables) = (tools(record)?, variables(record)?);
            Ok(Sample::Chat(Conversation { messages, prompt_len, is_completion: true, tools, variables }))
        }
        _ => {
            Err(format!("`{prompt_field}` and `{completion_field}` must both be strings, or both be lists of messages"))
        }
    }
}

/// Makes a conversation of an instruction and its output, or the prompt that the Alpaca models were trained with.
fn alpaca(record: &Record, chat: bool) -> Result<Sample, String> {
    let instruction = text(record, "instruction")?;
    let output = text(record, "output")?;
    let input = match record.get("input") {
        None | Some(Value::Null) => "",
        Some(_) => text(record, "input")?,
    };
    if output.is_empty() {
        return Err("`output` is empty, so there is nothing to learn".into());
    }
    if chat {
        let separator = if input.is_empty() { "" } else { "\n\n" };
        let messages =
            vec![message("user", format!("{instruction}{separator}{input}")), message("assistant", output.to_owned())];
        let conversation = Conversation { messages, prompt_len: 1, is_completion: true, ..Default::default() };
        return Ok(Sample::Chat(Conversation { variables: variables(record)?, ..conversation }));
    }
    let (with, input) = match input {
        "" => ("", String::new()),
        input => (", paired with an input that provides further context", format!("### Input:\n{input}\n\n")),
    };
    let prompt = format!(
        "Below is an instruction that describes a task{with}. Write a response that appropriately completes the \
         request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
    );
    Ok(Sample::Completion { prompt, completion: output.to_owned() })
}

fn conversation(record: &Record, field: &str) -> Result<Sample, String> {
    let mut messages = match record.get(field) {
        Some(Value::Array(list)) => list_of_messages(list, field)?,
        Some(other) => return Err(format!("`{field}` is {}, but must be a list of messages", shortened(other))),
        None => return Err(missing(field, record)),
    };
    let system = record.get("system").and_then(Value::as_str).filter(|system| !system.is_empty());
    if let (Some(system), false) = (system, starts_with_system(&messages)) {
        messages.insert(0, message("system", system.to_owned()));
    }
    let prompt_len = messages.iter().rposition(is_assistant).unwrap_or(messages.len());
    let (tools, variables) = (tools(record)?, variables(record)?);
    Ok(Sample::Chat(Conversation { messages, prompt_len, is_completion: false, tools, variables }))
}

/// Normalizes messages for templates: `role` and `content`, without null fields.
fn list_of_messages(list: &[Value], field: &str) -> Result<Vec<Value>, String> {
    let one = |(at, value): (usize, &Value)| {
        let wrong = |problem: &str| format!("`{field}`, message {}: {problem}", at + 1);
        let Value::Object(fields) = value else {
            return Err(wrong(r#"must be {"role", "content"} or {"from", "value"}"#));
        };
        let mut fields: Record =
            fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
        if let (false, Some(from)) = (fields.contains_key("role"), fields.remove("from")) {
            fields.insert("role".into(), from);
        }
        if let (false, Some(value)) = (fields.contains_key("content"), fields.remove("value")) {
            fields.insert("content".into(), value);
        }
        let role = match fields.get("role") {
            Some(Value::String(role)) => usual_role(role).to_owned(),
            _ => return Err(wrong("has no `role` (or `from`) that is a string")),
        };
        fields.insert("role".into(), role.into());
        match fields.get("content") {
            Some(Value::String(_) | Value::Array(_)) => {}
            None if fields.contains_key("tool_calls") => {
                fields.insert("content".into(), String::new().into());
            }
            _ => return Err(wrong("has no `content` (or `value`) that is a string")),
        }
        Ok(Value::Object(fields))
    };
    list.iter().enumerate().map(one).collect()
}

/// Maps a data set's role name to the name that templates use. Unknown names stay; the template decides about them.
fn usual_role(name: &str) -> &str {
    match name {
        "human" => "user",
        "gpt" | "chatgpt" | "bard" | "bing" | "model" => "assistant",
        "observation" | "function_response" => "tool",
        other => other,
    }
}

fn message(role: &str, content: String) -> Value {
    Value::Object([("role".to_owned(), role.into()), ("content".to_owned(), content.into())].into_iter().collect())
}

/// True for a message of the assistant.
pub fn is_assistant(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "assistant")
}

fn starts_with_system(messages: &[Value]) -> bool {
    messages.first().and_then(|message| message.get("role")).is_some_and(|role| role == "system")
}

/// Returns the template's variables that a record sets, which some files hold as JSON in a string.
fn variables(record: &Record) -> Result<Map<String, Value>, String> {
    const FIELD: &str = "chat_template_kwargs";
    let parsed =
        |text: &str| serde_json::from_str(text).map_err(|_| format!("`{FIELD}` is a string that holds no JSON object"));
    let value = match record.get(FIELD) {
        Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
        Some(Value::String(text)) => parsed(text)?,
        other => other.cloned().unwrap_or_default(),
    };
    match value {
        Value::Null => Ok(Map::new()),
        // Files of columns hold a null for each variable that another record sets.
        Value::Object(fields) => Ok(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => Err(format!("`{FIELD}` is {}, but must be an object", shortened(&other))),
    }
}

/// Returns the tools of a conversation, which some files hold as JSON in a string.
fn tools(record: &Record) -> Result<Option<Value>, String> {
    match record.get("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(tools @ Value::Array(_)) => Ok(Some(tools.clone())),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(tools @ Value::Array(_)) => Ok(Some(tools)),
            _ => Err("`tools` is a string that holds no JSON list".into()),
        },
        Some(other) => Err(format!("`tools` is {}, but must be a list", shortened(other))),
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(record: Value, settings: &DataSettings) -> Result<Sample, String> {
        let record = record.as_object().unwrap().clone();
        let shape = shape_of(&record, settings).ok_or_else(|| unknown_shape(&record))?;
        sample_of(&record, shape, settings, 100, false)
    }

    fn user_and_assistant(is_completion: bool) -> Sample {
        let messages = vec![message("user", "q".into()), message("assistant", "a".into())];
        Sample::Chat(Conversation { messages, prompt_len: 1, is_completion, ..Default::default() })
    }

    #[test]
    fn the_fields_decide_on_the_shape() {
        let settings = DataSettings::default();
        let chat = [
            json!({"messages": [{"role": "user", "content": "q", "name": null}, {"role": "assistant", "content": "a"}]}),
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "text": "t"}),
            json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}),
        ];
        for (record, is_completion) in chat.into_iter().zip([false, false, true]) {
            assert_eq!(sample(record.clone(), &settings).unwrap(), user_and_assistant(is_completion), "{record}");
        }
        let completion = Sample::Completion { prompt: "p".into(), completion: "c".into() };
        assert_eq!(sample(json!({"prompt": "p", "completion": "c", "text": "t"}), &settings).unwrap(), completion);
        assert_eq!(sample(json!({"text": "t", "messages": null}), &settings).unwrap(), Sample::Text("t".into()));
        let tokens = Sample::Tokens { input_ids: vec![1, 2], trained: vec![false, true] };
        assert_eq!(sample(json!({"input_ids": [1, 2], "labels": [-100, 2]}), &settings).unwrap(), tokens);
    }

    #[test]
    fn settings_go_before_the_fields() {
        let record = json!({"text": "t", "body": "b", "question": "q", "answer": "a", "messages": []});
        let text = DataSettings { text_field: Some("body".into()), ..Default::default() };
        assert_eq!(sample(record.clone(), &text).unwrap(), Sample::Text("b".into()));
        let shape = DataSettings { shape: Some(Shape::Text), ..Default::default() };
        assert_eq!(sample(record.clone(), &shape).unwrap(), Sample::Text("t".into()));
        let completion = DataSettings {
            prompt_field: Some("question".into()),
            completion_field: Some("answer".into()),
            ..Default::default()
        };
        let expected = Sample::Completion { prompt: "q".into(), completion: "a".into() };
        assert_eq!(sample(record.clone(), &completion).unwrap(), expected);
        let missing = DataSettings { text_field: Some("gone".into()), ..Default::default() };
        assert!(sample(record, &missing).unwrap_err().contains("has no `gone`, only the fields [text, body"));
        let all = DataSettings { train_on: Some(TrainOn::All), ..Default::default() };
        let tokens = Sample::Tokens { input_ids: vec![1, 2], trained: vec![true, true] };
        assert_eq!(sample(json!({"input_ids": [1, 2], "labels": [-100, 2]}), &all).unwrap(), tokens);
        assert!(check_train_on(Shape::Text, Some(TrainOn::Assistant)).is_err());
        assert!(check_train_on(Shape::Text, Some(TrainOn::All)).is_ok());
    }

    #[test]
    fn an_instruction_is_the_classic_prompt_or_a_conversation() {
        let record = json!({"instruction": "Add.", "input": "1 2", "output": "3"}).as_object().unwrap().clone();
        let of = |chat| sample_of(&record, Shape::Alpaca, &DataSettings::default(), 9, chat).unwrap();
        let Sample::Completion { prompt, completion } = of(false) else { panic!("not a completion") };
        let expected = "Below is an instruction that describes a task, paired with an input that provides further \
                        context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
                        Add.\n\n### Input:\n1 2\n\n### Response:\n";
        assert_eq!((prompt.as_str(), completion.as_str()), (expected, "3"));
        let Sample::Chat(Conversation { messages, .. }) = of(true) else { panic!("not a conversation") };
        assert_eq!(messages, [message("user", "Add.\n\n1 2".into()), message("assistant", "3".into())]);
    }

    #[test]
    fn conversations_carry_tools_and_a_system_text() {
        let calls = json!([{"function": {"name": "f", "arguments": {}}}]);
        let record = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}],
            "system": "s", "tools": "[{\"name\": \"f\"}]"});
        let Sample::Chat(got) = sample(record, &DataSettings::default()).unwrap() else { panic!("no conversation") };
        assert_eq!((got.messages.len(), got.prompt_len, got.tools), (3, 2, Some(json!([{"name": "f"}]))));
        assert_eq!(got.messages[2], json!({"role": "assistant", "tool_calls": calls, "content": ""}));
    }

    #[test]
    fn wrong_fields_are_named() {
        let cases = [
            (json!({"a": 1, "b": 2}), "fields [a, b], which make no supported example"),
            (json!({"messages": "m"}), "`messages` is \"m\", but must be a list"),
            (json!({"messages": [3]}), "`messages`, message 1: must be"),
            (json!({"messages": [{"role": 3, "content": "c"}]}), "no `role`"),
            (
                json!({"messages": [{"role": "user", "content": "c"}, {"role": "assistant"}]}),
                "message 2: has no `content`",
            ),
            (json!({"messages": [], "tools": 3}), "`tools` is 3"),
            (json!({"messages": [], "tools": "x"}), "no JSON list"),
            (json!({"prompt": "p", "completion": []}), "must both be strings, or both be lists"),
            (json!({"instruction": "i", "output": ""}), "`output` is empty"),
            (json!({"instruction": 3, "output": "o"}), "`instruction` is 3"),
        ];
        for (record, says) in cases {
            let message = sample(record, &DataSettings::default()).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }
}
