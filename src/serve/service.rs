//! A model with its adapters as clients see it: names, and tokens of texts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use web_time::{SystemTime, UNIX_EPOCH};

use super::fields::{Fields, token_ids};
use super::refusal::Refusal;
use crate::hub::base_name;
use crate::infer::adapter_names::AdapterNames;
use crate::infer::session::PreparedSession;
use crate::infer::text_format::TextFormat;

/// A model with its adapters.
pub struct Service {
    /// Tokenizer and chat template.
    pub format: Arc<TextFormat>,
    /// Largest number of tokens of prompt and answer together.
    pub context: usize,
    names: AdapterNames,
    paths: Vec<PathBuf>,
    model: PathBuf,
    created: u64,
    /// The adapter that answers where a request names none: its index + 1; 0 is the base.
    chosen: AtomicUsize,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A number that nobody can guess, for ids and for seeds of requests that name none.
pub fn fresh_number() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn scale(entry: &Value) -> Option<f64> {
    entry.get("scale").map_or(Some(1.0), Value::as_f64)
}

impl Service {
    /// The service of a session with a context of `context` tokens. The first adapter answers where a request names none.
    pub fn new(session: &PreparedSession, context: usize) -> Self {
        Self {
            format: session.format.clone(),
            context,
            names: session.names.clone(),
            paths: session.adapter_dirs.clone(),
            model: session.source.dir.clone(),
            created: now(),
            chosen: AtomicUsize::new(usize::from(!session.names.is_empty())),
        }
    }

    /// The name of the base: its id on the hub, or the name of its directory or file.
    pub fn base(&self) -> String {
        let name = base_name(&self.model);
        match Path::new(&name).file_name().and_then(|last| last.to_str()) {
            Some(last) if self.model.display().to_string() == name => {
                last.strip_suffix(".gguf").unwrap_or(last).to_owned()
            }
            _ => name,
        }
    }

    /// The name of an adapter by its index, or of the base.
    pub fn name(&self, adapter: Option<usize>) -> String {
        adapter.map_or_else(|| self.base(), |index| self.names.name(Some(index)).to_owned())
    }

    /// The answer to `GET /v1/models`.
    pub fn models(&self) -> Value {
        let base = self.base();
        let entry = |id: &str, parent: Option<&str>| {
            json!({
                "id": id, "object": "model", "created": self.created, "owned_by": "loraine", "parent": parent,
                "max_model_len": self.context,
            })
        };
        let adapters = self.names.with_base().skip(1).map(|name| entry(name, Some(&base)));
        json!({ "object": "list", "data": std::iter::once(entry(&base, None)).chain(adapters).collect::<Vec<_>>() })
    }

    /// The adapter that answers a request: the one of `lora`, else the one that `model` names, else the chosen one.
    ///
    /// # Errors
    /// No model or adapter has this name; the error lists the names. Or `lora` asks for what the server does not do.
    pub fn adapter(&self, fields: &Fields) -> Result<Option<usize>, Refusal> {
        let name = fields.text("model")?.unwrap_or_default();
        let named = match name {
            "" => self.chosen.load(Ordering::Relaxed).checked_sub(1),
            name => match self.names.index(name) {
                Ok(adapter) => adapter,
                Err(_) if name == self.base() || name == base_name(&self.model) => None,
                Err(_) => {
                    let base = self.base();
                    let known: Vec<&str> =
                        std::iter::once(base.as_str()).chain(self.names.with_base().skip(1)).collect();
                    let message = format!("there is no model `{name}`; there are: {}", known.join(", "));
                    let refusal = Refusal::new(404, "not_found_error", message);
                    return Err(Refusal { param: Some("model".to_owned()), ..refusal });
                }
            },
        };
        match fields.list("lora")? {
            Some(list) => self.of_scales(list).map_err(|problem| Refusal::field("lora", problem)),
            None => Ok(named),
        }
    }

    /// The adapter of a list of `{"id", "scale"}`, as llama.cpp's clients name adapters.
    fn of_scales(&self, list: &[Value]) -> Result<Option<usize>, String> {
        let mut found = None;
        for entry in list {
            let count = self.names.len();
            let id = entry.get("id").and_then(Value::as_u64).and_then(|id| usize::try_from(id).ok());
            let id = id
                .filter(|id| *id < count)
                .ok_or_else(|| format!("has an entry {entry}, but there are {count} adapters with ids from 0 on"))?;
            match scale(entry) {
                Some(0.0) => {}
                Some(1.0) if found.is_none_or(|found| found == id) => found = Some(id),
                Some(1.0) => return Err("names two adapters, but one adapter answers a request".to_owned()),
                _ => {
                    return Err(format!(
                        "has an entry {entry}, but a scale is 0 or 1: adapters answer as they were trained"
                    ));
                }
            }
        }
        Ok(found)
    }

    /// The answer to `GET /lora-adapters`.
    pub fn lora_adapters(&self) -> Value {
        let chosen = self.chosen.load(Ordering::Relaxed);
        let entry = |(id, path): (usize, &PathBuf)| {
            json!({
                "id": id, "path": path.display().to_string(), "name": self.names.name(Some(id)),
                "scale": if id + 1 == chosen { 1.0 } else { 0.0 }, "task_name": "", "prompt_prefix": "",
            })
        };
        self.paths.iter().enumerate().map(entry).collect()
    }

    /// Handles `POST /lora-adapters`: chooses the adapter for requests that name none.
    ///
    /// # Errors
    /// The body is no list of `{"id", "scale"}`, or asks for what the server does not do.
    pub fn choose(&self, body: &Value) -> Result<Value, Refusal> {
        let list = body.as_array().ok_or_else(|| Refusal::invalid(r#"the body must be a list of {"id", "scale"}"#))?;
        let adapter = self.of_scales(list).map_err(|problem| Refusal::invalid(format!("the list {problem}")))?;
        self.chosen.store(adapter.map_or(0, |index| index + 1), Ordering::Relaxed);
        Ok(json!({ "success": true }))
    }

    /// Handles `POST /tokenize`: the tokens of `content`.
    ///
    /// # Errors
    /// A field is missing or wrong.
    pub fn tokenize(&self, body: &Value) -> Result<Value, Refusal> {
        let fields = Fields::of(body)?;
        let content = fields.text("content")?.ok_or_else(|| Refusal::field("content", "is missing"))?;
        let special = fields.flag("add_special")?;
        let ids = self.format.tokenizer.encode(content, special).map_err(|e| Refusal::of(&e))?;
        if !fields.flag("with_pieces")? {
            return Ok(json!({ "tokens": ids }));
        }
        let piece = |id: &u32| json!({ "id": id, "piece": self.token_text(*id) });
        Ok(json!({ "tokens": ids.iter().map(piece).collect::<Vec<_>>() }))
    }

    /// Handles `POST /detokenize`: the text of `tokens`.
    ///
    /// # Errors
    /// A field is missing or wrong.
    pub fn detokenize(&self, body: &Value) -> Result<Value, Refusal> {
        let list = Fields::of(body)?.list("tokens")?.ok_or_else(|| Refusal::field("tokens", "is missing"))?;
        let ids = token_ids(list).ok_or_else(|| Refusal::field("tokens", "must be a list of token ids"))?;
        let text = self.format.tokenizer.decode_with_special(&ids).map_err(|e| Refusal::of(&e))?;
        Ok(json!({ "content": text }))
    }

    /// The text of a token in the middle of a text, with its leading space; incomplete characters are replaced.
    pub fn token_text(&self, id: u32) -> String {
        let decode = |ids: &[u32]| self.format.tokenizer.decode_with_special(ids).unwrap_or_default();
        let (one, two) = (decode(&[id]), decode(&[id, id]));
        two.strip_prefix(one.as_str()).map_or(one.clone(), str::to_owned)
    }
}
