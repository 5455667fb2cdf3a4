//! Writes answers in OpenAI's form: whole, or in pieces.

use serde_json::{Value, json};

use super::service::Service;
use super::turns::{Chance, End, News};
use crate::infer::generator::Stop;

/// The form of an answer.
#[derive(Clone, Debug)]
pub struct Form {
    /// True for the answer to a conversation, false for a continued text.
    pub chat: bool,
    /// The id of the answer, in each of its pieces.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name of the adapter, or of the base.
    pub model: String,
    /// True if a stream ends with the counts of tokens.
    pub include_usage: bool,
    /// True if the answer has log-probabilities.
    pub logprobs: bool,
    /// A text before the answer: the prompt, if it is repeated.
    pub echo: String,
}

fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::EndToken(_) | Stop::StopString => "stop",
        Stop::MaxTokens | Stop::Context | Stop::Caller => "length",
    }
}

fn usage(end: &End) -> Value {
    json!({
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
        "prompt_tokens_details": { "cached_tokens": end.cached_tokens },
    })
}

impl Form {
    fn frame(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("loraine-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }

    /// The whole answer: its text, the tokens with their log-probabilities, and its end.
    pub fn whole(&self, service: &Service, text: &str, chances: &[Chance], end: &End) -> Value {
        let logprobs = self.logprobs_of(service, chances);
        let finish_reason = finish_reason(end.stop);
        let choice = match self.chat {
            true => json!({
                "index": 0, "message": { "role": "assistant", "content": text }, "logprobs": logprobs,
                "finish_reason": finish_reason,
            }),
            false => json!({
                "index": 0, "text": format!("{}{text}", self.echo), "logprobs": logprobs, "finish_reason": finish_reason,
            }),
        };
        let mut whole = self.frame(if self.chat { "chat.completion" } else { "text_completion" }, json!([choice]));
        whole["usage"] = usage(end);
        whole
    }

    fn piece(&self, delta: Value, logprobs: Value, finish_reason: Option<&str>) -> Value {
        let name = if self.chat { "delta" } else { "text" };
        let choice = json!({ "index": 0, name: delta, "logprobs": logprobs, "finish_reason": finish_reason });
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        let mut piece = self.frame(object, json!([choice]));
        if self.include_usage {
            piece["usage"] = Value::Null;
        }
        piece
    }

    /// The piece before the answer, if there is one.
    pub fn first(&self) -> Option<Value> {
        match self.chat {
            true => Some(self.piece(json!({ "role": "assistant", "content": null }), Value::Null, None)),
            false => (!self.echo.is_empty()).then(|| self.piece(self.echo.clone().into(), Value::Null, None)),
        }
    }

    /// The pieces of what a turn added. Tokens without text yet are pieces only for the sake of their log-probabilities.
    pub fn pieces(&self, service: &Service, news: &News) -> Vec<Value> {
        let mut pieces = Vec::new();
        if !news.text.is_empty() || news.chance.is_some() {
            let logprobs = self.logprobs_of(service, news.chance.as_slice());
            let delta = if self.chat { json!({ "content": news.text }) } else { news.text.clone().into() };
            pieces.push(self.piece(delta, logprobs, None));
        }
        if let Some(end) = &news.end {
            let nothing = if self.chat { json!({}) } else { "".into() };
            pieces.push(self.piece(nothing, Value::Null, Some(finish_reason(end.stop))));
            if self.include_usage {
                let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
                let mut last = self.frame(object, json!([]));
                last["usage"] = usage(end);
                pieces.push(last);
            }
        }
        pieces
    }

    fn logprobs_of(&self, service: &Service, chances: &[Chance]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let text = |id: &u32| service.token_text(*id);
        if self.chat {
            let entry = |(id, logprob): &(u32, f64)| {
                let token = text(id);
                let bytes = (!token.contains(char::REPLACEMENT_CHARACTER)).then(|| token.clone().into_bytes());
                json!({ "token": token, "logprob": logprob, "bytes": bytes })
            };
            let whole = |chance: &Chance| {
                let mut token = entry(&(chance.token, chance.logprob));
                token["top_logprobs"] = chance.likeliest.iter().map(entry).collect();
                token
            };
            return json!({ "content": chances.iter().map(whole).collect::<Vec<_>>(), "refusal": null });
        }
        let tokens: Vec<String> = chances.iter().map(|chance| text(&chance.token)).collect();
        let values: Vec<f64> = chances.iter().map(|chance| chance.logprob).collect();
        let likeliest = |chance: &Chance| -> Value {
            let entries = chance.likeliest.iter().map(|(id, logprob)| (text(id), Value::from(*logprob)));
            Value::Object(entries.collect())
        };
        let likeliest: Vec<Value> = chances.iter().map(likeliest).collect();
        json!({ "tokens": tokens, "token_logprobs": values, "top_logprobs": likeliest })
    }
}
