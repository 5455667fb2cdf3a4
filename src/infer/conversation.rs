//! A conversation with a model: messages written by its chat template, as tokens to go on from.

use serde_json::{Value, json};

use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The messages so far, the system's first where there is one.
pub struct Conversation<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    system: Option<String>,
    messages: Vec<Value>,
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

impl<'a> Conversation<'a> {
    pub fn new(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, system: Option<String>) -> Self {
        let mut conversation = Self { tokenizer, template, system, messages: Vec::new() };
        conversation.reset();
        conversation
    }

    /// Forgets everything but the system's message.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| message("system", text)).collect();
    }

    /// The tokens up to where the model answers `text`, which joins the conversation with [`Self::answered`] alone.
    ///
    /// # Errors
    /// What the template refuses: a system message it has no place for, for instance.
    pub fn ask(&self, text: &str) -> Result<Vec<u32>> {
        let messages: Vec<Value> = self.messages.iter().cloned().chain([message("user", text)]).collect();
        let rendered = self.template.render(&messages, None, true).map_err(Error::Setting)?;
        self.tokenizer.encode(&rendered, false)
    }

    pub fn answered(&mut self, text: &str, answer: &str) {
        self.messages.extend([message("user", text), message("assistant", answer)]);
    }

    /// Messages of user and assistant.
    pub fn len(&self) -> usize {
        self.messages.len() - usize::from(self.system.is_some())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The special token with which the template ends the assistant's turns, where it is one.
///
/// # Errors
/// A template that cannot write two plain turns.
pub fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Option<u32>> {
    const ANSWER: &str = "0123456789";
    let rendered =
        template.render(&[message("user", "a"), message("assistant", ANSWER)], None, false).map_err(Error::Setting)?;
    let after = rendered.rfind(ANSWER).map(|at| &rendered[at + ANSWER.len()..]).unwrap_or_default();
    let first = tokenizer.encode(after, false)?.first().copied();
    Ok(first.filter(|id| tokenizer.is_special(*id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::tests::stories;

    #[test]
    fn turns_are_written_by_the_template_and_forgotten_on_request() {
        let Some(tokenizer) = stories() else { return };
        let special = tokenizer.special_tokens().unwrap();
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";
        let template = ChatTemplate::new(template, "test".to_owned(), special).unwrap();
        let mut talk = Conversation::new(&tokenizer, &template, Some("be kind".to_owned()));
        let ids = |text: String| tokenizer.encode(&text, false).unwrap();
        let begin = "system: be kind</s>";
        assert_eq!(talk.ask("hi").unwrap(), ids(format!("{begin}user: hi</s>assistant:")));
        assert!(talk.is_empty(), "asking alone changes nothing");
        talk.answered("hi", "hello");
        assert_eq!(talk.len(), 2);
        let next = ids(format!("{begin}user: hi</s>assistant: hello</s>user: more</s>assistant:"));
        assert_eq!(talk.ask("more").unwrap(), next);
        talk.reset();
        assert_eq!(talk.ask("hi").unwrap(), ids(format!("{begin}user: hi</s>assistant:")));
        assert_eq!(end_of_turn(&tokenizer, &template).unwrap(), tokenizer.eos());
    }
}
