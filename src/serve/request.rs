//! Reads requests for answers and for continued texts, in OpenAI's form.

use serde_json::Value;

use super::answer::Form;
use super::fields::{Fields, token_ids};
use super::refusal::Refusal;
use super::service::{Service, fresh_number, now};
use super::turns::{Bias, Request};
use crate::data::fitting::fitted;
use crate::data::messages;
use crate::data::sample::Conversation;
use crate::data::template::Input;
use crate::infer::generator::GenerationSettings;
use crate::infer::sampler::SamplingSettings;

/// Stop strings that a request may have.
const MOST_STOPS: usize = 32;
/// Tokens beside each token that a request may ask log-probabilities of.
const MOST_LOGPROBS: u64 = 20;

/// A request as a client asks it.
pub struct Asked {
    /// The text to generate.
    pub request: Request,
    /// The form of its answer.
    pub form: Form,
    /// True if the answer comes piece by piece.
    pub stream: bool,
}

/// Reads a request for the answer to a conversation.
///
/// # Errors
/// A field is missing, wrong, or asks for what the server does not do; the template refuses the messages; the prompt is too long.
pub fn chat(body: &Value, service: &Service) -> Result<Asked, Refusal> {
    let fields = Fields::of(body)?;
    let no = "the server only writes plain text";
    fields.refuse("response_format", &[serde_json::json!({ "type": "text" })], no)?;
    let chosen_by_model = ["auto".into(), "none".into()];
    fields.refuse("tool_choice", &chosen_by_model, "the model alone decides about tools: auto or none")?;
    let asked_for = fields.flag("logprobs")?;
    let most = fields.count("top_logprobs", MOST_LOGPROBS)?;
    if most.is_some_and(|most| most > 0) && !asked_for {
        return Err(Refusal::field("top_logprobs", "needs `logprobs` to be true"));
    }
    let prompt = chat_prompt(&fields, service)?;
    asked(&fields, service, prompt, asked_for.then(|| most.unwrap_or(0)), true)
}

/// Reads a request to continue a text.
///
/// # Errors
/// As [`chat`].
pub fn completion(body: &Value, service: &Service) -> Result<Asked, Refusal> {
    let fields = Fields::of(body)?;
    fields.refuse("suffix", &["".into()], "the server only continues texts")?;
    fields.refuse("best_of", &[1.into()], "the server makes one answer: 1")?;
    let logprobs = match fields.get("logprobs") {
        Some(Value::Bool(asked)) => asked.then_some(0),
        _ => fields.count("logprobs", MOST_LOGPROBS)?,
    };
    let prompt = prompt(&fields, service)?;
    let mut asked = asked(&fields, service, prompt, logprobs, false)?;
    if fields.flag("echo")? {
        let text = service.format.tokenizer.decode(&asked.request.prompt).map_err(|e| Refusal::of(&e))?;
        asked.form.echo = text;
    }
    Ok(asked)
}

/// The tokens of the conversation, up to the beginning of the answer.
fn chat_prompt(fields: &Fields, service: &Service) -> Result<Vec<u32>, Refusal> {
    let Some(template) = &service.format.template else {
        return Err(Refusal::invalid(
            "the model has no chat template; give the server one, or continue a text with /v1/completions",
        ));
    };
    let list = fields.list("messages")?.ok_or_else(|| Refusal::field("messages", "is missing"))?;
    if list.is_empty() {
        return Err(Refusal::field("messages", "is empty, but must have at least one message"));
    }
    let at_messages = |problem| Refusal { param: Some("messages".to_owned()), ..Refusal::invalid(problem) };
    for (at, message) in list.iter().enumerate() {
        let parts = message.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let other = parts.iter().find(|part| !part.get("text").is_some_and(Value::is_string));
        if let Some(other) = other {
            let kind = other.get("type").and_then(Value::as_str).unwrap_or("no text");
            let problem = format!(
                "`messages`, message {}: its content has a part of type {kind}, but the model reads text only",
                at + 1
            );
            return Err(at_messages(problem));
        }
    }
    let read = messages::messages(&Value::from(list.to_vec()), "messages").map_err(at_messages)?;
    let tools = match fields.get("tool_choice").and_then(Value::as_str) {
        Some("none") => None,
        _ => messages::tools(fields.get("tools"))
            .map_err(|p| Refusal { param: Some("tools".into()), ..Refusal::invalid(p) })?,
    };
    let variables = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    let conversation = Conversation { messages: read.list, tools, variables, ..Conversation::default() };
    let conversation = fitted(template, &conversation).map_err(at_messages)?;
    let Conversation { messages, tools, variables, .. } = &*conversation;
    let input = Input { messages, tools: tools.as_ref(), variables: Some(variables) };
    service.format.chat_of(&input).map_err(|e| Refusal::of(&e))
}

/// The tokens of a text to continue, which may be given as tokens.
fn prompt(fields: &Fields, service: &Service) -> Result<Vec<u32>, Refusal> {
    let encode = |text: &str| service.format.continuation(text).map_err(|e| Refusal::of(&e));
    let wrong = || Refusal::field("prompt", "must be a string or a list of token ids; one request has one prompt");
    match fields.get("prompt") {
        None => Err(Refusal::field("prompt", "is missing")),
        Some(Value::String(text)) => encode(text),
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(text)] => encode(text),
            [Value::Array(ids)] => token_ids(ids).ok_or_else(wrong),
            ids => token_ids(ids).ok_or_else(wrong),
        },
        Some(_) => Err(wrong()),
    }
}

/// The fields that both kinds of requests have.
fn asked(
    fields: &Fields,
    service: &Service,
    prompt: Vec<u32>,
    logprobs: Option<usize>,
    chat: bool,
) -> Result<Asked, Refusal> {
    for name in ["n", "num_choices"] {
        fields.refuse(name, &[1.into()], "the server makes one answer: 1")?;
    }
    for name in ["grammar", "json_schema"] {
        fields.refuse(name, &["".into()], "the server only writes plain text")?;
    }
    let adapter = service.adapter(fields)?;
    if prompt.is_empty() {
        return Err(Refusal::field("prompt", "is empty, and the model has no token that begins a text"));
    }
    if prompt.len() > service.context {
        return Err(Refusal::too_long(prompt.len(), service.context));
    }
    let settings = GenerationSettings {
        sampling: sampling(fields)?,
        max_tokens: max_tokens(fields)?.unwrap_or(service.context),
        end_tokens: if fields.flag("ignore_eos")? { Vec::new() } else { service.format.end_tokens.clone() },
        stop_strings: fields.texts("stop", MOST_STOPS)?,
    };
    let stream = fields.flag("stream")?;
    let include_usage = match fields.object("stream_options")? {
        Some(options) => Fields::of(&Value::Object(options.clone()))?.flag("include_usage")?,
        None => false,
    };
    let form = Form {
        chat,
        id: format!("{}-{:016x}", if chat { "chatcmpl" } else { "cmpl" }, fresh_number()),
        created: now(),
        model: service.name(adapter),
        include_usage,
        logprobs: logprobs.is_some(),
        echo: String::new(),
    };
    let request = Request { prompt, adapter, settings, bias: bias(fields)?, logprobs };
    Ok(Asked { request, form, stream })
}

fn sampling(fields: &Fields) -> Result<SamplingSettings, Refusal> {
    let number = |names: &[&str], default: f32| -> Result<f32, Refusal> {
        for name in names {
            if let Some(number) = fields.number(name)? {
                return Ok(number);
            }
        }
        Ok(default)
    };
    let settings = SamplingSettings {
        temperature: number(&["temperature"], 1.0)?,
        top_k: fields.whole("top_k")?.and_then(|k| usize::try_from(k).ok()).unwrap_or(0),
        top_p: number(&["top_p"], 1.0)?,
        min_p: number(&["min_p"], 0.0)?,
        repetition_penalty: number(&["repetition_penalty", "repeat_penalty"], 1.0)?,
        // llama.cpp's clients ask for any seed by -1.
        seed: fields.whole("seed")?.filter(|seed| *seed != -1).map_or_else(fresh_number, |seed| seed as u64),
    };
    settings.check().map_err(|e| Refusal::of(&e))?;
    Ok(settings)
}

/// The largest number of tokens of the answer; -1 is no limit, as for llama.cpp.
fn max_tokens(fields: &Fields) -> Result<Option<usize>, Refusal> {
    for name in ["max_completion_tokens", "max_tokens", "n_predict"] {
        match fields.whole(name)? {
            None => {}
            Some(-1) => return Ok(None),
            Some(_) => return fields.count(name, u64::MAX),
        }
    }
    Ok(None)
}

fn bias(fields: &Fields) -> Result<Bias, Refusal> {
    let wrong = || Refusal::field("logit_bias", "must be an object of token ids and numbers, such as {\"42\": -100}");
    let mut tokens = Vec::new();
    for (id, bias) in fields.object("logit_bias")?.into_iter().flatten() {
        let id = id.parse().map_err(|_| wrong())?;
        let bias = bias.as_f64().map(|bias| bias as f32).filter(|bias| bias.abs() <= 1e6).ok_or_else(wrong)?;
        tokens.push((id, bias));
    }
    let penalty = |name| -> Result<f32, Refusal> {
        let number = fields.number(name)?.unwrap_or(0.0);
        match number.abs() <= 2.0 {
            true => Ok(number),
            false => Err(Refusal::field(name, format!("is {number}, but must be between -2 and 2"))),
        }
    };
    Ok(Bias { tokens, presence: penalty("presence_penalty")?, frequency: penalty("frequency_penalty")? })
}
