//! Finds out which fields of a record make an example, from the settings or from the fields' names.

use serde_json::Value;

use super::foreign_messages::{is_foreign, is_talk, rows};
use super::record::Record;
use super::settings::{DataSettings, Feedback, Shape};
use crate::setting::{COMPLETION_FIELD, Key, MESSAGES_FIELD, PROMPT_FIELD, SHAPE, TEXT_FIELD};
use crate::{Error, Result};

/// Uses of a field in an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The messages of a conversation.
    Messages,
    /// Tools that the assistant of a conversation may call.
    Tools,
    /// Functions in the older form of tools.
    Functions,
    /// A system message, in a field of its own.
    System,
    /// Earlier pairs of instruction and output.
    History,
    /// A prompt or an instruction.
    Prompt,
    /// The input or context of an instruction.
    Input,
    /// A completion, an output or an answer.
    Completion,
    /// A text, all of which is trained on.
    Text,
    /// Token ids.
    InputIds,
    /// The token ids that are trained on, with -100 at the places of the others.
    Labels,
    /// Values of the chat template's variables.
    Variables,
    /// The answer that was chosen.
    Chosen,
    /// The answer that was rejected.
    Rejected,
    /// The word whether an answer was found good.
    Label,
}

/// The fields of a record that make an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The shape of the record.
    pub shape: Shape,
    names: Vec<(Part, String)>,
}

impl Columns {
    /// The columns of a completion under their usual names.
    pub(super) fn of_completion() -> Self {
        const NAMES: [(Part, &str); 5] = [
            (Part::Prompt, "prompt"),
            (Part::Completion, "completion"),
            (Part::System, "system"),
            (Part::Tools, "tools"),
            (Part::Variables, "chat_template_kwargs"),
        ];
        let names = NAMES.map(|(part, name)| (part, name.to_owned())).to_vec();
        Self { shape: Shape::Completion, names }
    }

    /// The name of the field for `part`; the usual name where the record has none.
    pub fn name(&self, part: Part) -> Option<&str> {
        self.names.iter().find(|(has, _)| *has == part).map(|(_, name)| name.as_str())
    }

    /// True if the field `name` is one of these.
    pub fn has_field(&self, name: &str) -> bool {
        self.names.iter().any(|(_, known)| known == name)
    }

    /// The format and the fields that it comes from, for people: `alpaca, from the fields question and answer`.
    pub fn sentence(&self) -> String {
        let shown =
            self.names.iter().filter(|(part, _)| !matches!(part, Part::Tools | Part::Functions | Part::Variables));
        let names: Vec<&str> = shown.map(|(_, name)| name.as_str()).collect();
        let shape = self.shape.name();
        match names.split_last() {
            Some((last, [])) => format!("{shape}, from the field {last}"),
            Some((last, rest)) => format!("{shape}, from the fields {} and {last}", rest.join(", ")),
            None => shape.to_owned(),
        }
    }
}

const MESSAGES: [&str; 1] = ["messages"];
const CONVERSATIONS: [&str; 1] = ["conversations"];
/// Further names of lists of messages.
const DIALOGS: [&str; 8] = ["conversation", "dialog", "dialogue", "chat", "turns", "utterances", "items", "contents"];
const SYSTEM: [&str; 5] = ["system", "system_prompt", "system_message", "systemInstruction", "system_instruction"];
const PROMPTS_OF_PREFERENCES: [&str; 3] = ["prompt", "question", "instruction"];
/// Names of both answers of a preference: TRL's, and those of OpenAI with the prompt in `input`.
const CHOSEN: [&str; 2] = ["chosen", "preferred_output"];
const REJECTED: [&str; 2] = ["rejected", "non_preferred_output"];
const INPUT: [&str; 2] = ["input", "context"];
const TEXTS: [&str; 8] = ["text", "content", "body", "document", "article", "story", "passage", "code"];
/// Pairs of published data sets, the more specific ones first.
const PAIRS: [(&[&str], &[&str]); 11] = [
    (&["instruction"], &["output", "response", "completion", "answer", "target"]),
    (&["problem"], &["solution", "answer", "response", "output"]),
    (&["question"], &["answer", "response", "output", "solution", "completion"]),
    (&["query"], &["response", "answer", "output", "completion"]),
    (&["prompt"], &["response", "output", "answer", "completion", "target"]),
    (&["input"], &["output", "response", "answer", "target"]),
    (&["inputs"], &["targets", "outputs", "labels"]),
    (&["user", "human"], &["assistant", "bot", "ai"]),
    (&["source"], &["target"]),
    (&["dialogue", "document", "article"], &["summary", "highlights"]),
    (&["request"], &["response", "reply"]),
];

/// The first of `names` that the record has a value for, in any case of letters.
fn find(record: &Record, names: &[&str]) -> Option<String> {
    let has = |key: &&String| record.get(*key).is_some_and(|value| !value.is_null());
    let exact = || names.iter().find_map(|name| record.keys().filter(has).find(|key| key == name));
    let any_case =
        || names.iter().find_map(|name| record.keys().filter(has).find(|key| key.eq_ignore_ascii_case(name)));
    exact().or_else(any_case).cloned()
}

/// Returns the columns that the settings name or that the record's fields show; `None` if they show none.
pub fn columns(record: &Record, settings: &DataSettings) -> Option<Columns> {
    let shape = settings.shape.or_else(|| shape_of_feedback(record, settings.feedback));
    let shape = shape.or_else(|| shape_of_names(settings)).or_else(|| shape_of_fields(record));
    let pair = || PAIRS.iter().find_map(|(prompts, answers)| Some((find(record, prompts)?, find(record, answers)?)));
    let (shape, found_pair) = match shape {
        Some(Shape::Alpaca) => (Shape::Alpaca, pair()),
        Some(shape) => (shape, None),
        None => {
            if let Some(name) = find(record, &DIALOGS).filter(|name| {
                let value = &record[name.as_str()];
                holds_messages(value) || holds_talk(name, value)
            }) {
                let named = DataSettings { messages_field: Some(name), ..DataSettings::default() };
                return columns(record, &named);
            }
            if let Some((prompt, completion)) = pair()
                && [&prompt, &completion].iter().any(|name| holds_messages(&record[name.as_str()]))
            {
                let (prompt_field, completion_field) = (Some(prompt), Some(completion));
                return columns(record, &DataSettings { prompt_field, completion_field, ..DataSettings::default() });
            }
            match (pair(), find(record, &TEXTS)) {
                (Some(pair), _) => (Shape::Alpaca, Some(pair)),
                (None, Some(text)) => return Some(Columns { shape: Shape::Text, names: vec![(Part::Text, text)] }),
                (None, None) => (shape_of_feedback(record, Feedback::Pairs)?, None),
            }
        }
    };
    let mut names = Vec::new();
    let mut add = |part, named: &Option<String>, known: &[&str]| {
        let name = named.clone().or_else(|| find(record, known)).or_else(|| known.first().map(|&name| name.to_owned()));
        names.extend(name.map(|name| (part, name)));
    };
    match shape {
        Shape::Tokens => add(Part::InputIds, &None, &["input_ids"]),
        Shape::Text => add(Part::Text, &settings.text_field, &TEXTS),
        Shape::Chat => add(Part::Messages, &settings.messages_field, &MESSAGES),
        Shape::Sharegpt => add(Part::Messages, &settings.messages_field, &CONVERSATIONS),
        Shape::Completion => {
            add(Part::Prompt, &settings.prompt_field, &["prompt"]);
            add(Part::Completion, &settings.completion_field, &["completion"]);
        }
        Shape::Preference => {
            let of_openai =
                || record.get("input").filter(|input| input.get("messages").is_some()).map(|_| "input".to_owned());
            let prompt = settings.prompt_field.clone().or_else(|| find(record, &PROMPTS_OF_PREFERENCES));
            if let Some(prompt) = prompt.or_else(of_openai) {
                names.push((Part::Prompt, prompt));
            }
            let of = |known: &[&str]| find(record, known).unwrap_or_else(|| known[0].to_owned());
            names.extend([(Part::Chosen, of(&CHOSEN)), (Part::Rejected, of(&REJECTED))]);
        }
        Shape::UnpairedPreference => {
            add(Part::Prompt, &settings.prompt_field, &["prompt"]);
            add(Part::Completion, &settings.completion_field, &["completion"]);
            names.push((Part::Label, "label".to_owned()));
        }
        Shape::Alpaca => {
            let (prompt, answer) = found_pair.unzip();
            add(Part::Prompt, &settings.prompt_field.clone().or(prompt), &["instruction"]);
            add(Part::Completion, &settings.completion_field.clone().or(answer), &["output"]);
        }
    }
    const TOOLS: (Part, &[&str]) = (Part::Tools, &["tools"]);
    const VARIABLES: (Part, &[&str]) = (Part::Variables, &["chat_template_kwargs"]);
    let optional: &[(Part, &[&str])] = match shape {
        Shape::Tokens => &[(Part::Labels, &["labels"])],
        Shape::Text => &[],
        Shape::Chat | Shape::Sharegpt => {
            &[(Part::System, &SYSTEM), TOOLS, (Part::Functions, &["functions"]), VARIABLES]
        }
        Shape::Completion | Shape::Preference | Shape::UnpairedPreference => {
            &[(Part::System, &SYSTEM), TOOLS, VARIABLES]
        }
        Shape::Alpaca => {
            &[(Part::Input, &INPUT), (Part::System, &SYSTEM), (Part::History, &["history"]), TOOLS, VARIABLES]
        }
    };
    for (part, known) in optional {
        let taken = |name: &String| names.iter().any(|(_, other)| other == name);
        if let Some(name) = find(record, known).filter(|name| !taken(name)) {
            names.push((*part, name));
        }
    }
    Some(Columns { shape, names })
}

/// The shape that the names of fields in the settings imply.
fn shape_of_names(settings: &DataSettings) -> Option<Shape> {
    let named = |field: &Option<String>, shape: Shape| field.is_some().then_some(shape);
    named(&settings.messages_field, Shape::Chat)
        .or(named(&settings.prompt_field, Shape::Completion))
        .or(named(&settings.completion_field, Shape::Completion))
        .or(named(&settings.text_field, Shape::Text))
}

/// The shape of a preference, by the names that TRL has for its fields.
fn shape_of_feedback(record: &Record, feedback: Feedback) -> Option<Shape> {
    let has = |field: &str| record.get(field).is_some_and(|value| !value.is_null());
    let pair = CHOSEN.iter().zip(REJECTED).any(|(chosen, rejected)| has(chosen) && has(rejected));
    let rated = has("prompt") && has("completion") && has("label");
    match feedback {
        Feedback::None => None,
        Feedback::Pairs => pair.then_some(Shape::Preference),
        Feedback::Rated => rated.then_some(Shape::UnpairedPreference).or_else(|| pair.then_some(Shape::Preference)),
    }
}

/// The shape that the usual names of fields show.
fn shape_of_fields(record: &Record) -> Option<Shape> {
    let shapes = [
        (Shape::Tokens, ["input_ids"].as_slice()),
        (Shape::Chat, &MESSAGES),
        (Shape::Sharegpt, &CONVERSATIONS),
        (Shape::Completion, &["prompt", "completion"]),
        (Shape::Alpaca, &["instruction", "output"]),
        (Shape::Text, &["text"]),
    ];
    let has = |field: &&str| record.get(*field).is_some_and(|value| !value.is_null());
    shapes.into_iter().find(|(_, fields)| fields.iter().all(has)).map(|(shape, _)| shape)
}

/// True for a list of messages, in any of the forms that are read.
fn holds_messages(value: &Value) -> bool {
    let is_message = |value: &Value| is_foreign(value) || ["role", "from"].iter().any(|key| value.get(key).is_some());
    match value {
        Value::Array(list) => list.iter().all(is_message),
        Value::Object(fields) => rows(fields).is_some(),
        _ => false,
    }
}

/// True for a list of texts in turn, in a field whose name says that people talk.
fn holds_talk(name: &str, value: &Value) -> bool {
    let says_so = !["items", "contents"].contains(&name);
    says_so && value.as_array().is_some_and(|list| is_talk(list))
}

/// Shapes with a prompt; all but the last have a completion too.
const PROMPTED: [Shape; 4] = [Shape::Completion, Shape::Alpaca, Shape::UnpairedPreference, Shape::Preference];

/// Checks that the names of fields in the settings belong to one shape.
///
/// # Errors
/// A name that the given shape, or the name of another field, leaves without use.
pub fn check_names(settings: &DataSettings) -> Result<()> {
    let names: [(Key, bool, &[Shape]); 4] = [
        (MESSAGES_FIELD, settings.messages_field.is_some(), &[Shape::Chat, Shape::Sharegpt]),
        (PROMPT_FIELD, settings.prompt_field.is_some(), &PROMPTED),
        (COMPLETION_FIELD, settings.completion_field.is_some(), &PROMPTED[..3]),
        (TEXT_FIELD, settings.text_field.is_some(), &[Shape::Text]),
    ];
    let shape = settings.shape.or_else(|| shape_of_names(settings));
    for (key, given, shapes) in names {
        let Some(shape) = shape.filter(|shape| given && !shapes.contains(shape)) else { continue };
        let of = |shape: &Shape| SHAPE.is(shape.name());
        let shapes: Vec<_> = shapes.iter().map(of).collect();
        let problem = match settings.shape {
            Some(_) => format!("has no use with {}; it is for {}", of(&shape), shapes.join(" and ")),
            None => format!("has no use beside the other names of fields; it is for {}", shapes.join(" and ")),
        };
        return Err(Error::setting(key, format!("{key} {problem}")));
    }
    Ok(())
}

/// Error text for a record whose fields make no example, with the settings that would name them.
pub fn unknown_columns(record: &Record) -> String {
    let supported = "{messages}, {conversations}, {prompt, completion}, {instruction, output}, {question, answer} and the like, \
                     {text}, {input_ids} and {prompt, chosen, rejected}";
    let texts: Vec<&str> =
        record.iter().filter(|(_, value)| value.is_string()).map(|(name, _)| name.as_str()).collect();
    let quoted = |name: &str| match name.contains(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-' | '.')) {
        true => format!("'{}'", name.replace('⟩', "")),
        false => name.to_owned(),
    };
    let advice = match texts[..] {
        [first, second, ..] => {
            let pair = format!("{} {}", PROMPT_FIELD.is(quoted(first)), COMPLETION_FIELD.is(quoted(second)));
            format!("; say which they are, for example {pair}")
        }
        [one] => format!("; if it is the text, say so: {}", TEXT_FIELD.is(quoted(one))),
        [] => String::new(),
    };
    let fields: Vec<_> = record.keys().map(String::as_str).collect();
    format!(
        "has the fields [{}], which make no supported example; supported are {supported}{advice}",
        fields.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(record: Value, settings: &DataSettings) -> Option<String> {
        columns(record.as_object().unwrap(), settings).map(|columns| columns.sentence())
    }

    #[test]
    fn fields_of_published_data_sets_are_known() {
        let s = |name: &str| Value::from(format!("the {name}"));
        let message = json!([{"role": "user", "content": "q"}]);
        for (record, expected) in [
            (json!({"question": s("q"), "answer": s("a")}), "alpaca, from the fields question and answer"),
            (json!({"input": s("i"), "output": s("o")}), "alpaca, from the fields input and output"),
            (json!({"prompt": s("p"), "response": s("r"), "id": 3}), "alpaca, from the fields prompt and response"),
            (
                json!({"query": s("q"), "response": s("r"), "type": s("t")}),
                "alpaca, from the fields query and response",
            ),
            (
                json!({"problem": s("p"), "solution": s("s"), "answer": s("a")}),
                "alpaca, from the fields problem and solution",
            ),
            (
                json!({"instruction": s("i"), "context": s("c"), "response": s("r"), "category": s("x")}),
                "alpaca, from the fields instruction, response and context",
            ),
            (
                json!({"system_prompt": s("s"), "question": s("q"), "response": s("r")}),
                "alpaca, from the fields question, response and system_prompt",
            ),
            (json!({"Question": s("q"), "Answer": s("a")}), "alpaca, from the fields Question and Answer"),
            (json!({"dialogue": s("d"), "summary": s("s")}), "alpaca, from the fields dialogue and summary"),
            (
                json!({"instruction": s("i"), "output": s("o"), "text": s("t")}),
                "alpaca, from the fields instruction and output",
            ),
            (json!({"question": s("q"), "answer": s("a"), "text": s("t")}), "text, from the field text"),
            (json!({"content": s("c"), "url": s("u")}), "text, from the field content"),
            (json!({"dialog": message}), "chat, from the field dialog"),
            (json!({"messages": message, "prompt": s("p")}), "chat, from the field messages"),
            (json!({"prompt": s("p"), "completion": s("c")}), "completion, from the fields prompt and completion"),
        ] {
            assert_eq!(of(record.clone(), &DataSettings::default()).as_deref(), Some(expected), "{record}");
        }
        assert_eq!(of(json!({"a": s("a"), "question": s("q")}), &DataSettings::default()), None);
    }

    #[test]
    fn names_in_the_settings_go_before_others_and_must_fit_the_shape() {
        let field = |name: &str| Some(name.to_owned());
        let record = json!({"q": "x", "question": "y", "answer": "z"});
        let prompt = DataSettings { prompt_field: field("q"), completion_field: field("answer"), ..Default::default() };
        assert_eq!(of(record.clone(), &prompt).unwrap(), "completion, from the fields q and answer");
        let alpaca = DataSettings { shape: Some(Shape::Alpaca), prompt_field: field("q"), ..Default::default() };
        assert_eq!(of(record, &alpaca).unwrap(), "alpaca, from the fields q and answer");
        for good in [prompt.clone(), alpaca] {
            check_names(&good).unwrap();
        }
        let both = DataSettings { text_field: field("t"), ..prompt.clone() };
        let shape = DataSettings { shape: Some(Shape::Chat), ..prompt };
        for (settings, says) in
            [(both, "⟨text-field⟩ has no use beside"), (shape, "⟨prompt-field⟩ has no use with ⟨shape=chat⟩")]
        {
            let message = check_names(&settings).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn unknown_fields_are_listed_with_the_settings_that_name_them() {
        let message = unknown_columns(json!({"id": 1, "ask it": "q", "reply": "a"}).as_object().unwrap());
        assert!(message.contains("[id, ask it, reply]"), "{message}");
        assert!(message.contains("⟨prompt-field='ask it'⟩ ⟨completion-field=reply⟩"), "{message}");
    }
}
