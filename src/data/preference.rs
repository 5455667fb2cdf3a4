//! Records of preferences: the answers that are compared, each as a record of a prompt and a completion.
//!
//! Fields and rules are those of TRL: a prompt that is missing, or that is of another kind than the answers, is what both answers begin
//! with.

use serde_json::Value;

use super::Example;
use super::columns::{Columns, Part};
use super::record::{Record, shortened};
use super::settings::Shape;

/// The answers of a record.
pub(super) struct Preference<'a> {
    /// Each answer with the name of its field, as a record of `prompt` and `completion`: the chosen and the rejected one, or one.
    pub answers: Vec<(&'a str, Record)>,
    /// For a single answer whether it was found good.
    pub feedback: Option<bool>,
    /// Names of the fields that were used.
    pub used: Vec<&'a String>,
}

/// Takes a record apart.
///
/// # Errors
/// The rest of a sentence about the record: a field is missing or of the wrong kind, or the answers are the same.
pub(super) fn preference_of<'a>(record: &'a Record, columns: &'a Columns) -> Result<Preference<'a>, String> {
    let field = |part: Part| {
        let name = columns.name(part).unwrap_or_default();
        let value = record.get(name).filter(|value| !value.is_null());
        value.map(|value| (name, value)).ok_or_else(|| format!("has no `{name}`"))
    };
    let used = record.keys().filter(|name| columns.has_field(name)).collect();
    let answer = |prompt: Value, completion: Value| {
        let mut answer = Record::from_iter([("prompt".to_owned(), prompt), ("completion".to_owned(), completion)]);
        if let Some(tools) = prompt_tools(record, columns) {
            answer.insert("tools".to_owned(), tools);
        }
        for (part, name) in
            [(Part::System, "system"), (Part::Tools, "tools"), (Part::Variables, "chat_template_kwargs")]
        {
            if let Ok((_, value)) = field(part) {
                answer.insert(name.to_owned(), value.clone());
            }
        }
        answer
    };
    if columns.shape == Shape::UnpairedPreference {
        let (prompt, completion) = (field(Part::Prompt)?.1, field(Part::Completion)?);
        let answers = vec![(completion.0, answer(prompt.clone(), completion.1.clone()))];
        return Ok(Preference { answers, feedback: Some(label(field(Part::Label)?)?), used });
    }
    let ((chosen_name, chosen), (rejected_name, rejected)) = (field(Part::Chosen)?, field(Part::Rejected)?);
    if chosen == rejected {
        return Err(format!("has the same answer as `{chosen_name}` and as `{rejected_name}`, which prefers nothing"));
    }
    let kind = |value: &Value| (value.is_string(), value.is_array());
    if kind(chosen) != kind(rejected) || kind(chosen) == (false, false) {
        return Err(format!("must have two strings or two lists of messages as `{chosen_name}` and `{rejected_name}`"));
    }
    let given = field(Part::Prompt)
        .ok()
        .map(|(_, prompt)| prompt.get("messages").unwrap_or(prompt))
        .filter(|prompt| kind(prompt) == kind(chosen));
    let (prompt, completions) = match given {
        Some(prompt) => (prompt.clone(), [chosen.clone(), rejected.clone()]),
        None => split_prompt(chosen, rejected),
    };
    let answers = [chosen_name, rejected_name].into_iter().zip(completions);
    let answers = answers.map(|(name, completion)| (name, answer(prompt.clone(), completion))).collect();
    Ok(Preference { answers, feedback: None, used })
}

/// The tools beside the messages of a prompt in OpenAI's form, `{"messages": [...], "tools": [...]}`.
fn prompt_tools(record: &Record, columns: &Columns) -> Option<Value> {
    record.get(columns.name(Part::Prompt)?)?.get("tools").filter(|tools| !tools.is_null()).cloned()
}

/// The word whether an answer is good: true or false, also as 1 or 0.
fn label((name, value): (&str, &Value)) -> Result<bool, String> {
    match value {
        Value::Bool(label) => Ok(*label),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::String(text) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(false),
        other => Err(format!("has {} as `{name}`, but must have true or false", shortened(other))),
    }
}

/// Splits two different values of one kind into what both begin with and what follows. A text is not split after a space, so that the
/// space belongs to the answers.
fn split_prompt(chosen: &Value, rejected: &Value) -> (Value, [Value; 2]) {
    match (chosen, rejected) {
        (Value::Array(chosen), Value::Array(rejected)) => {
            let common = chosen.iter().zip(rejected).take_while(|(a, b)| a == b).count();
            // Each side keeps a message to learn from.
            let common = common.min(chosen.len().saturating_sub(1)).min(rejected.len().saturating_sub(1));
            let rest = [chosen, rejected].map(|list| Value::from(list[common..].to_vec()));
            (Value::from(chosen[..common].to_vec()), rest)
        }
        _ => {
            let [chosen, rejected] = [chosen, rejected].map(|value| value.as_str().unwrap_or_default());
            let same = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b);
            let mut common: usize = same.map(|(c, _)| c.len_utf8()).sum();
            if chosen[..common].ends_with(' ') {
                common -= 1;
            }
            (chosen[..common].into(), [&chosen[common..], &rejected[common..]].map(Value::from))
        }
    }
}

/// Lets the answers of two sequences begin at one place, as TRL does: a token that spans the border belongs to both prompts or to none.
pub(super) fn begin_together(chosen: &mut Example, rejected: &mut Example) {
    let first = |example: &Example| example.trained.iter().position(|trained| *trained).unwrap_or(0);
    let start = first(chosen).min(first(rejected));
    for example in [chosen, rejected] {
        let own = first(example);
        if example.input_ids.len() > own {
            example.trained[start..own].fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::columns::columns;
    use crate::data::settings::{DataSettings, Feedback};

    fn read(record: &Value, feedback: Feedback) -> Result<Vec<Value>, String> {
        let record = record.as_object().unwrap();
        let columns = columns(record, &DataSettings { feedback, ..DataSettings::default() }).ok_or("no columns")?;
        let Preference { answers, feedback, .. } = preference_of(record, &columns)?;
        let mut found: Vec<Value> = answers.into_iter().map(|(_, answer)| Value::Object(answer)).collect();
        found.extend(feedback.map(Value::Bool));
        Ok(found)
    }

    #[test]
    fn prompts_are_given_or_what_both_answers_begin_with() {
        let [user, good, bad] = [("user", "q"), ("assistant", "yes"), ("assistant", "no")]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        let texts = [json!({"prompt": "q", "completion": "yes"}), json!({"prompt": "q", "completion": "no"})];
        let lists = [json!({"prompt": [user], "completion": [good]}), json!({"prompt": [user], "completion": [bad]})];
        for (record, expected) in [
            (json!({"prompt": "q", "chosen": "yes", "rejected": "no"}), texts.clone()),
            (json!({"question": "q", "chosen": "yes", "rejected": "no"}), texts),
            (json!({"prompt": [user], "chosen": [good], "rejected": [bad]}), lists.clone()),
            (json!({"chosen": [user, good], "rejected": [user, bad]}), lists.clone()),
            (
                json!({"input": {"messages": [user]}, "preferred_output": [good], "non_preferred_output": [bad]}),
                lists.clone(),
            ),
            // A prompt of another kind says the same again.
            (json!({"prompt": "q", "chosen": [user, good], "rejected": [user, bad]}), lists),
            (
                json!({"chosen": "Is it? Yes.", "rejected": "Is it? No."}),
                [json!({"prompt": "Is it?", "completion": " Yes."}), json!({"prompt": "Is it?", "completion": " No."})],
            ),
            (
                json!({"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}),
                ["a", "b"].map(|text| json!({"prompt": "q", "completion": text, "system": "s"})),
            ),
        ] {
            for feedback in [Feedback::None, Feedback::Pairs, Feedback::Rated] {
                assert_eq!(read(&record, feedback).unwrap(), expected, "{record}");
            }
        }
    }

    #[test]
    fn a_label_makes_a_rating_where_the_objective_wants_one() {
        let record = |label: Value| json!({"prompt": "q", "completion": "a", "label": label});
        for (label, good) in [(json!(true), true), (json!(false), false), (json!(1), true), (json!("False"), false)] {
            let answer = json!({"prompt": "q", "completion": "a"});
            assert_eq!(read(&record(label), Feedback::Rated).unwrap(), [answer, json!(good)]);
        }
        assert!(read(&record(json!("maybe")), Feedback::Rated).unwrap_err().contains("true or false"));
        let plain = record(json!(true));
        let plain = columns(plain.as_object().unwrap(), &DataSettings::default()).unwrap();
        assert_eq!(plain.shape, Shape::Completion);
    }

    #[test]
    fn records_that_prefer_nothing_are_refused() {
        for (record, says) in [
            (json!({"chosen": "a", "rejected": "a"}), "prefers nothing"),
            (json!({"chosen": "a", "rejected": [{"role": "user", "content": "q"}]}), "two strings or two lists"),
            (json!({"chosen": 1, "rejected": 2}), "two strings or two lists"),
        ] {
            let problem = read(&record, Feedback::Pairs).unwrap_err();
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn answers_begin_at_one_place() {
        let example = |trained: &[u8]| Example::new(vec![0; trained.len()], trained.iter().map(|t| *t == 1).collect());
        let (mut chosen, mut rejected) = (example(&[0, 0, 0, 1]), example(&[0, 1, 1]));
        begin_together(&mut chosen, &mut rejected);
        assert_eq!((chosen, rejected), (example(&[0, 1, 1, 1]), example(&[0, 1, 1])));
    }
}
