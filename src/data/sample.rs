//! Turns the fields of a record into a sample: extracts text, prompt, completion or conversation.

use serde_json::{Map, Value};

use super::columns::{Columns, Part};
pub use super::messages::is_assistant;
use super::messages::{self, Messages, message, starts_with_system};
use super::record::{Record, shortened};
use super::settings::{DataSettings, Shape, TrainOn};
use crate::setting::TRAIN_ON;
use crate::{Error, Result};

/// Content of one record, in one of four forms.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// Token ids as the record has them.
    Tokens {
        /// The token ids.
        input_ids: Vec<u32>,
        /// True for each token that is trained on; as long as `input_ids`.
        trained: Vec<bool>,
    },
    /// A text, all of which is trained on.
    Text(String),
    /// A text in two parts.
    Completion {
        /// The part that is given, and by default not trained on.
        prompt: String,
        /// The part to learn.
        completion: String,
    },
    /// A conversation, which a chat template turns into text.
    Chat(Conversation),
}

/// Number of words of a text that ask for its continuation.
const FIRST_WORDS: usize = 8;

impl Sample {
    /// A prompt for the trained model to begin with: the prompt or the first user message, or the first words of a text.
    pub fn question(&self) -> Option<String> {
        let question = match self {
            Self::Tokens { .. } => None,
            Self::Text(text) => Some(first_words(text)),
            Self::Completion { prompt, .. } => Some(prompt.clone()),
            Self::Chat(conversation) => {
                let message = conversation.messages.iter().find(|message| message["role"] == "user")?;
                message["content"].as_str().map(str::to_owned)
            }
        };
        question.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

/// The first words of a text.
pub fn first_words(text: &str) -> String {
    text.split_whitespace().take(FIRST_WORDS).collect::<Vec<_>>().join(" ")
}

/// Messages with `role` and `content`, as chat templates expect them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// JSON objects in the order of the conversation.
    pub messages: Vec<Value>,
    /// Number of messages before the completion.
    pub prompt_len: usize,
    /// True if the record itself separates prompt and completion.
    pub is_completion: bool,
    /// A JSON list of tools that the assistant may call.
    pub tools: Option<Value>,
    /// Values of the template's variables: the record's `chat_template_kwargs`.
    pub variables: Map<String, Value>,
    /// Places of the assistant's messages that the record excludes from training.
    pub untrained: Vec<usize>,
}

impl Conversation {
    /// Number of assistant turns before the completion.
    pub fn assistant_turns_in_prompt(&self) -> usize {
        self.messages.iter().take(self.prompt_len).filter(|message| is_assistant(message)).count()
    }
}

/// Checks that records of a shape have the tokens that the settings train on.
///
/// # Errors
/// Completions or assistant turns of records that have none.
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

/// Makes the sample of a record with these columns. `chat` turns an instruction into a conversation instead of the Alpaca prompt.
///
/// # Errors
/// The rest of a sentence about the record: a field is missing or has a value that cannot be used.
pub fn sample_of(
    record: &Record,
    columns: &Columns,
    settings: &DataSettings,
    vocab_size: usize,
    chat: bool,
) -> Result<Sample, String> {
    let fields = Fields { record, columns };
    match columns.shape {
        Shape::Tokens => {
            let ids = fields.required(Part::InputIds)?;
            let labels = fields.get(Part::Labels).filter(|_| settings.train_on != Some(TrainOn::All));
            tokens(ids, labels, vocab_size)
        }
        Shape::Text => fields.text(Part::Text).map(|text| Sample::Text(text.to_owned())),
        Shape::Chat | Shape::Sharegpt => conversation(&fields),
        Shape::Completion => completion(&fields),
        Shape::Preference | Shape::UnpairedPreference => {
            Err("is a preference, whose answers are read one by one".to_owned())
        }
        Shape::Alpaca => alpaca(&fields, chat),
    }
}

/// Names of the fields that hold something and that make no part of the sample.
pub fn unused_fields<'a>(record: &'a Record, columns: &Columns, sample: &Sample) -> Vec<&'a str> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    // A prompt that is one text has no place for them.
    let of_conversations: &[Part] = match sample {
        Sample::Completion { .. } => &[Part::System, Part::History, Part::Tools, Part::Variables],
        _ => &[],
    };
    let unused = |name: &&String| {
        !columns.has_field(name) || of_conversations.iter().any(|part| columns.name(*part) == Some(name.as_str()))
    };
    record.iter().filter(|(_, value)| !empty(value)).map(|(name, _)| name).filter(unused).map(String::as_str).collect()
}

/// The fields of a record by their use.
struct Fields<'a> {
    record: &'a Record,
    columns: &'a Columns,
}

impl<'a> Fields<'a> {
    fn get(&self, part: Part) -> Option<&'a Value> {
        self.record.get(self.columns.name(part)?)
    }

    fn name(&self, part: Part) -> &'a str {
        self.columns.name(part).unwrap_or_default()
    }

    fn required(&self, part: Part) -> Result<&'a Value, String> {
        self.get(part).ok_or_else(|| missing(self.name(part), self.record))
    }

    fn text(&self, part: Part) -> Result<&'a str, String> {
        match self.required(part)? {
            Value::String(text) => Ok(text),
            other => Err(format!("`{}` is {}, but must be a string", self.name(part), shortened(other))),
        }
    }

    /// A text that may be missing or null.
    fn optional_text(&self, part: Part) -> Result<&'a str, String> {
        match self.get(part) {
            None | Some(Value::Null) => Ok(""),
            Some(_) => self.text(part),
        }
    }

    fn tools(&self) -> Result<Option<Value>, String> {
        match (messages::tools(self.get(Part::Tools))?, self.get(Part::Functions)) {
            (None, Some(functions)) => messages::functions_as_tools(functions),
            (tools, _) => Ok(tools),
        }
    }

    /// The template's variables that the record sets, which some files hold as JSON in a string.
    fn variables(&self) -> Result<Map<String, Value>, String> {
        let field = self.name(Part::Variables);
        let parsed = |text: &str| {
            serde_json::from_str(text).map_err(|_| format!("`{field}` is a string that holds no JSON object"))
        };
        let value = match self.get(Part::Variables) {
            Some(Value::String(text)) if text.trim().is_empty() => Value::Null,
            Some(Value::String(text)) => parsed(text)?,
            other => other.cloned().unwrap_or_default(),
        };
        match messages::without_nulls(&value) {
            Value::Null => Ok(Map::new()),
            Value::Object(fields) => Ok(fields),
            other => Err(format!("`{field}` is {}, but must be an object", shortened(&other))),
        }
    }

    /// Inserts the record's system text in front, unless the messages begin with one.
    fn with_system(&self, mut messages: Messages) -> Result<Messages, String> {
        let system = match self.get(Part::System) {
            // Gemini's form of it.
            Some(Value::Object(fields)) if fields.contains_key("parts") => {
                let parts = fields["parts"].as_array().map(Vec::as_slice).unwrap_or_default();
                parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
            }
            _ => self.optional_text(Part::System)?.to_owned(),
        };
        if !system.is_empty() && !starts_with_system(&messages.list) {
            messages.list.insert(0, message("system", system));
            messages.untrained.iter_mut().for_each(|at| *at += 1);
        }
        Ok(messages)
    }
}

fn missing(field: &str, record: &Record) -> String {
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    format!("has no `{field}`, only the fields [{}]", fields.join(", "))
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

fn completion(fields: &Fields) -> Result<Sample, String> {
    let (prompt_field, completion_field) = (fields.name(Part::Prompt), fields.name(Part::Completion));
    match (fields.required(Part::Prompt)?, fields.required(Part::Completion)?) {
        (Value::String(_), Value::String(completion)) if completion.is_empty() => {
            Err(format!("`{completion_field}` is empty, so there is nothing to learn"))
        }
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Sample::Completion { prompt: prompt.clone(), completion: completion.clone() })
        }
        (prompt, completion)
            if prompt.is_array() && completion.is_array() || is_part(prompt) && is_part(completion) =>
        {
            let of = |value: &Value, role: &str| match value {
                Value::String(text) => Value::Array(vec![message(role, text.clone())]),
                list => list.clone(),
            };
            let (prompt, completion) = (&of(prompt, "user"), &of(completion, "assistant"));
            let Messages { mut list, mut untrained } = fields.with_system(messages::messages(prompt, prompt_field)?)?;
            let completion = messages::messages(completion, completion_field)?;
            let prompt_len = list.len();
            untrained.extend(completion.untrained.iter().map(|at| at + prompt_len));
            list.extend(completion.list);
            let (tools, variables) = (fields.tools()?, fields.variables()?);
            Ok(Sample::Chat(Conversation {
                messages: list,
                prompt_len,
                is_completion: true,
                tools,
                variables,
                untrained,
            }))
        }
        _ => {
            Err(format!("`{prompt_field}` and `{completion_field}` must both be strings, or both be lists of messages"))
        }
    }
}

/// True for a text, and for a list of messages that may stand beside a text.
fn is_part(value: &Value) -> bool {
    value.is_string() || value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
}

/// Makes a conversation of an instruction and its output, or the prompt that the Alpaca models were trained with.
fn alpaca(fields: &Fields, chat: bool) -> Result<Sample, String> {
    let instruction = fields.text(Part::Prompt)?;
    let output = fields.text(Part::Completion)?;
    let input = fields.optional_text(Part::Input)?;
    if output.is_empty() {
        return Err(format!("`{}` is empty, so there is nothing to learn", fields.name(Part::Completion)));
    }
    if chat {
        let separator = if input.is_empty() || instruction.is_empty() { "" } else { "\n\n" };
        let history = match fields.get(Part::History) {
            Some(history) => messages::history(history, fields.name(Part::History))?,
            None => Vec::new(),
        };
        // As in LLaMA-Factory, which has this format, the answers of the history are learned as well.
        let is_completion = history.is_empty();
        let Messages { mut list, .. } = fields.with_system(Messages { list: history, untrained: Vec::new() })?;
        list.push(message("user", format!("{instruction}{separator}{input}")));
        let prompt_len = list.len();
        list.push(message("assistant", output.to_owned()));
        let (tools, variables, untrained) = (fields.tools()?, fields.variables()?, Vec::new());
        return Ok(Sample::Chat(Conversation {
            messages: list,
            prompt_len,
            is_completion,
            tools,
            variables,
            untrained,
        }));
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

fn conversation(fields: &Fields) -> Result<Sample, String> {
    let list = messages::messages(fields.required(Part::Messages)?, fields.name(Part::Messages))?;
    let Messages { list, untrained } = fields.with_system(list)?;
    let prompt_len = list.iter().rposition(is_assistant).unwrap_or(list.len());
    let (tools, variables) = (fields.tools()?, fields.variables()?);
    Ok(Sample::Chat(Conversation { messages: list, prompt_len, is_completion: false, tools, variables, untrained }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::columns::{columns, unknown_columns};
    use super::*;

    fn made(record: Value, settings: &DataSettings, chat: bool) -> Result<(Sample, Vec<String>), String> {
        let record = record.as_object().unwrap().clone();
        let columns = columns(&record, settings).ok_or_else(|| unknown_columns(&record))?;
        let sample = sample_of(&record, &columns, settings, 100, chat)?;
        let unused = unused_fields(&record, &columns, &sample).into_iter().map(str::to_owned).collect();
        Ok((sample, unused))
    }

    fn sample(record: Value, settings: &DataSettings) -> Result<Sample, String> {
        made(record, settings, false).map(|(sample, _)| sample)
    }

    fn user_and_assistant(is_completion: bool) -> Sample {
        let messages = vec![message("user", "q".into()), message("assistant", "a".into())];
        Sample::Chat(Conversation { messages, prompt_len: 1, is_completion, ..Default::default() })
    }

    #[test]
    fn a_record_has_a_question_to_begin_with() {
        let question = |record| sample(record, &DataSettings::default()).unwrap().question();
        let turns = [("system", "be brief"), ("user", " who? "), ("assistant", "me")];
        let chat = json!({"messages": turns.map(|(role, text)| message(role, text.into()))});
        assert_eq!(question(chat).as_deref(), Some("who?"));
        assert_eq!(question(json!({"prompt": "Count.", "completion": "1"})).as_deref(), Some("Count."));
        let text = "one two three four\nfive six seven eight nine";
        assert_eq!(question(json!({"text": text})).as_deref(), Some("one two three four five six seven eight"));
        assert_eq!(question(json!({"input_ids": [1, 2]})), None);
        assert_eq!(question(json!({"text": " "})), None);
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
        let record = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
        let of = |chat| made(record.clone(), &DataSettings::default(), chat).unwrap().0;
        let Sample::Completion { prompt, completion } = of(false) else { panic!("not a completion") };
        let expected = "Below is an instruction that describes a task, paired with an input that provides further \
                        context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
                        Add.\n\n### Input:\n1 2\n\n### Response:\n";
        assert_eq!((prompt.as_str(), completion.as_str()), (expected, "3"));
        let Sample::Chat(Conversation { messages, .. }) = of(true) else { panic!("not a conversation") };
        assert_eq!(messages, [message("user", "Add.\n\n1 2".into()), message("assistant", "3".into())]);
    }

    #[test]
    fn system_and_history_are_turns_of_a_conversation_and_otherwise_named() {
        let record = json!({"instruction": "And 3?", "input": "", "output": "7", "system": "Be brief.",
            "history": [["2+2?", "4"]], "id": 5});
        let (made_chat, unused) = made(record.clone(), &DataSettings::default(), true).unwrap();
        let Sample::Chat(got) = made_chat else { panic!("no conversation") };
        let roles: Vec<_> =
            got.messages.iter().map(|m| format!("{}: {}", m["role"], m["content"]).replace('"', "")).collect();
        assert_eq!(roles, ["system: Be brief.", "user: 2+2?", "assistant: 4", "user: And 3?", "assistant: 7"]);
        assert_eq!((got.prompt_len, got.is_completion, unused), (4, false, vec!["id".to_owned()]));
        assert_eq!(made(record, &DataSettings::default(), false).unwrap().1, ["system", "history", "id"]);
        let beside = json!({"prompt": "p", "completion": "c", "system": "s"});
        assert_eq!(made(beside, &DataSettings::default(), false).unwrap().1, ["system"]);
        let lists = json!({"prompt": [{"role": "user", "content": "q"}], "system": "s",
            "completion": [{"role": "assistant", "content": "a", "weight": 0}]});
        let (Sample::Chat(got), unused) = made(lists, &DataSettings::default(), false).unwrap() else {
            panic!("no chat")
        };
        assert_eq!((got.messages[0]["content"].as_str(), got.prompt_len, got.untrained), (Some("s"), 2, vec![2]));
        assert!(unused.is_empty(), "{unused:?}");
    }

    #[test]
    fn forms_of_other_services_are_conversations() {
        let roles = |record: Value| -> Vec<String> {
            let Sample::Chat(got) = sample(record, &DataSettings::default()).unwrap() else {
                panic!("no conversation")
            };
            got.messages.iter().map(|m| format!("{} {}", m["role"], m["content"]).replace('"', "")).collect()
        };
        let expected = ["system s", "user q", "assistant a"];
        let [user, assistant] =
            [("user", "q"), ("assistant", "a")].map(|(role, text)| json!({"role": role, "content": text}));
        for record in [
            json!({"conversation": [{"system": "s", "input": "q", "output": "a"}]}),
            json!({"dialog": ["q", "a"], "system": "s"}),
            json!({"items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}),
            json!({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}, "system": "s"}),
            json!({"prompt": [user], "response": [assistant], "system": "s"}),
            json!({"prompt": "q", "response": [assistant], "system": "s"}),
            json!({"prompt": [user], "completion": "a", "system": "s"}),
        ] {
            assert_eq!(roles(record.clone()), expected, "{record}");
        }
        let gemini = json!({"systemInstruction": {"parts": [{"text": "s"}]},
            "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]});
        assert_eq!(roles(gemini), ["system s", "user [{type:text,text:q}]", "assistant [{type:text,text:a}]"]);
        // A list of things is no talk.
        let basket = json!({"items": ["milk", "eggs"], "text": "t"});
        assert_eq!(sample(basket, &DataSettings::default()).unwrap(), Sample::Text("t".into()));
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
