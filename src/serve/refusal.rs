//! Errors as clients get them: a status of HTTP and OpenAI's error object.

use serde_json::{Value, json};

use crate::setting::written;
use crate::{Error, ErrorKind};

/// An error for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Status code of HTTP.
    pub status: u16,
    /// OpenAI's word for the kind of error.
    pub kind: &'static str,
    /// A sentence about it.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    /// Tokens of a prompt that is too long, and tokens that the context holds.
    pub counts: Option<(usize, usize)>,
}

impl Refusal {
    /// An error without a field.
    pub fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, counts: None }
    }

    /// A request that is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// A request with a wrong field.
    pub fn field(name: &str, problem: impl std::fmt::Display) -> Self {
        Self { param: Some(name.to_owned()), ..Self::invalid(format!("`{name}` {problem}")) }
    }

    /// A prompt that is longer than the context.
    pub fn too_long(prompt: usize, context: usize) -> Self {
        let message = format!(
            "the prompt has {prompt} tokens, but the context holds {context}; shorten it, or start the server with a \
             larger context"
        );
        Self { counts: Some((prompt, context)), ..Self::new(400, "exceed_context_size_error", message) }
    }

    /// A server that does not take requests, for a time or forever.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "unavailable_error", message)
    }

    /// A request that the library refuses, or the server's own failure.
    pub fn of(error: &Error) -> Self {
        let field = |key: &str, value: Option<&str>| match value {
            Some(value) => format!("`{}` {value}", key.replace('-', "_")),
            None => format!("`{}`", key.replace('-', "_")),
        };
        let message = written(&error.to_string(), field);
        match error.kind() {
            ErrorKind::Setting | ErrorKind::Argument => Self::invalid(message),
            _ => Self::new(500, "server_error", message),
        }
    }

    /// OpenAI's error object.
    pub fn to_json(&self) -> Value {
        let mut error = json!({ "code": self.status, "message": self.message, "type": self.kind, "param": self.param });
        if let Some((prompt, context)) = self.counts {
            error["n_prompt_tokens"] = prompt.into();
            error["n_ctx"] = context.into();
        }
        json!({ "error": error })
    }
}
