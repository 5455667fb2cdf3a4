//! A conversation with a model: the messages, which each client keeps for itself.

use serde_json::Value;

use super::text_format::{TextFormat, message};
use crate::Result;

/// The messages so far; a system message comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    system: Option<String>,
    messages: Vec<Value>,
}

impl Conversation {
    /// A conversation without questions; `system` is its system message.
    pub fn new(system: Option<String>) -> Self {
        let mut conversation = Self { system, messages: Vec::new() };
        conversation.reset();
        conversation
    }

    /// Removes all messages except the system message.
    pub fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| message("system", text)).collect();
    }

    /// Returns the tokens of the prompt for the answer to `text`. The question joins the conversation together with its answer, by
    /// [`Self::answered`].
    ///
    /// # Errors
    /// The errors of [`TextFormat::chat`].
    pub fn ask(&self, format: &TextFormat, text: &str) -> Result<Vec<u32>> {
        let messages: Vec<Value> = self.messages.iter().cloned().chain([message("user", text)]).collect();
        format.chat(&messages)
    }

    /// Adds a question and its answer.
    pub fn answered(&mut self, text: &str, answer: &str) {
        self.messages.extend([message("user", text), message("assistant", answer)]);
    }

    /// Number of messages of user and assistant.
    pub fn len(&self) -> usize {
        self.messages.len() - usize::from(self.system.is_some())
    }

    /// True if nothing was asked yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::text_format::tests::plain_chat;

    #[test]
    fn turns_are_written_by_the_template_and_forgotten_on_request() {
        let Some(format) = plain_chat() else { return };
        let mut talk = Conversation::new(Some("be kind".to_owned()));
        let ids = |text: String| format.tokenizer.encode(&text, false).unwrap();
        let begin = "system: be kind</s>";
        assert_eq!(talk.ask(&format, "hi").unwrap(), ids(format!("{begin}user: hi</s>assistant:")));
        assert!(talk.is_empty(), "asking alone changes nothing");
        talk.answered("hi", "hello");
        assert_eq!(talk.len(), 2);
        let next = ids(format!("{begin}user: hi</s>assistant: hello</s>user: more</s>assistant:"));
        assert_eq!(talk.ask(&format, "more").unwrap(), next);
        talk.reset();
        assert_eq!(talk.ask(&format, "hi").unwrap(), ids(format!("{begin}user: hi</s>assistant:")));
    }

    #[test]
    fn two_clients_hold_conversations_of_their_own() {
        let Some(format) = plain_chat() else { return };
        let mut clients = [None, Some("be brief".to_owned())].map(Conversation::new);
        clients[0].answered("hi", "hello");
        let fresh = Conversation::new(Some("be brief".to_owned()));
        assert_eq!(clients[1].ask(&format, "hi").unwrap(), fresh.ask(&format, "hi").unwrap());
        assert_ne!(clients[0].ask(&format, "hi").unwrap(), fresh.ask(&format, "hi").unwrap());
    }
}
