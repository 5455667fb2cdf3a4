//! The tokenizer keys of a GGUF file, from a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::gguf_writer::Meta;
use crate::model::gguf_tokenizer::split_name;
use crate::{Error, Result};

/// The kinds of a token, `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// The score of a token that no merge makes.
const NEVER_MERGED: f32 = -1e6;

type Keys = Vec<(&'static str, Meta)>;

/// A `tokenizer.json`, for messages its path.
struct Json<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
}

impl Json<'_> {
    fn error(&self, field: &str, problem: impl std::fmt::Display) -> Error {
        Error::field(self.path, field, problem)
    }

    fn at(&self, pointer: &str) -> Option<&Value> {
        let mut parts = pointer.split('/');
        let first = self.fields.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    /// The tokens by id, up to `count` of them, and their kinds.
    fn tokens(&self, count: usize) -> Result<(Vec<String>, Vec<i32>)> {
        let vocab = self.at("model/vocab").and_then(Value::as_object);
        let vocab = vocab.ok_or_else(|| self.error("model.vocab", "is missing; only BPE is written as GGUF"))?;
        let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; count];
        let mut set = |token: &str, id: Option<u64>, kind: i32| -> Result<()> {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < count).ok_or_else(|| {
                self.error(
                    "model.vocab",
                    format!("has the token `{token}`, for which the embedding of {count} rows has none"),
                )
            })?;
            tokens[id] = token.to_owned();
            kinds[id] = kind;
            Ok(())
        };
        let byte = |token: &str| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        let has_bytes = self.at("model/byte_fallback") == Some(&Value::Bool(true));
        for (token, id) in vocab {
            set(token, id.as_u64(), if has_bytes && byte(token) { BYTE } else { NORMAL })?;
        }
        let unknown = self.at("model/unk_token").and_then(Value::as_str);
        for added in self.at("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let Some(token) = added.get("content").and_then(Value::as_str) else { continue };
            let special = added.get("special") == Some(&Value::Bool(true));
            let kind = match special {
                true if has_bytes && unknown == Some(token) => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            set(token, added.get("id").and_then(Value::as_u64), kind)?;
        }
        Ok((tokens, kinds))
    }

    /// The two parts of each merge, the first to be made first.
    fn merges(&self) -> Result<Vec<[&str; 2]>> {
        fn parts(merge: &Value) -> Option<[&str; 2]> {
            match merge {
                Value::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
                Value::Array(list) if list.len() == 2 => Some([list[0].as_str()?, list[1].as_str()?]),
                _ => None,
            }
        }
        let list = self.at("model/merges").and_then(Value::as_array);
        let list = list.ok_or_else(|| self.error("model.merges", "is missing; only BPE is written as GGUF"))?;
        let pairs: Option<Vec<[&str; 2]>> = list.iter().map(parts).collect();
        pairs.ok_or_else(|| self.error("model.merges", "must be a list of pairs of tokens"))
    }

    /// The ids of the tokens that the tokenizer puts before and after a text.
    fn around(&self) -> [bool; 2] {
        let own = self.fields.get("post_processor").unwrap_or(&Value::Null);
        let listed = own.get("processors").and_then(Value::as_array);
        let template = std::iter::once(own)
            .chain(listed.into_iter().flatten())
            .find(|part| part.get("type").and_then(Value::as_str) == Some("TemplateProcessing"));
        let single = template.and_then(|template| template.get("single")).and_then(Value::as_array);
        let special = |part: Option<&Value>| part.is_some_and(|part| part.get("SpecialToken").is_some());
        match single {
            Some(single) => [special(single.first()), special(single.last())],
            None => [false; 2],
        }
    }

    /// The parts of a normalizer or pre-tokenizer, alone or in a sequence.
    fn parts(&self, field: &str, list: &str) -> Vec<&Value> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Vec::new(),
            Some(sequence) if sequence.get(list).is_some() => {
                sequence.get(list).and_then(Value::as_array).into_iter().flatten().collect()
            }
            Some(one) => vec![one],
        }
    }

    /// The name of the rule by which a byte-level tokenizer splits texts.
    fn pre(&self) -> Result<&'static str> {
        let parts = self.parts("pre_tokenizer", "pretokenizers");
        let kind = |part: &Value, name: &str| part.get("type").and_then(Value::as_str) == Some(name);
        let digits =
            parts.iter().any(|part| kind(part, "Digits") && part.get("individual_digits") == Some(&Value::Bool(true)));
        let expressions: Vec<&str> =
            parts.iter().filter_map(|part| part.pointer("/pattern/Regex").and_then(Value::as_str)).collect();
        let known = ["Digits", "Split", "ByteLevel"];
        let name = match expressions[..] {
            [] => split_name(None, digits, self.ignores_merges()),
            [one] if !digits => split_name(Some(one), false, self.ignores_merges()),
            _ => None,
        };
        name.filter(|_| parts.iter().all(|part| known.iter().any(|name| kind(part, name)))).ok_or_else(|| {
            self.error(
                "pre_tokenizer",
                "splits texts by a rule that llama.cpp has no name for, or none that is known here",
            )
        })
    }

    fn ignores_merges(&self) -> bool {
        self.at("model/ignore_merges") == Some(&Value::Bool(true))
    }

    /// True if a space is put before a text.
    fn adds_space(&self) -> bool {
        let kind = |part: &&Value, name: &str| part.get("type").and_then(Value::as_str) == Some(name);
        let prepends = self.parts("normalizer", "normalizers").iter().any(|part| kind(part, "Prepend"));
        let metaspace = self.parts("pre_tokenizer", "pretokenizers").into_iter().find(|part| kind(part, "Metaspace"));
        let scheme = metaspace.map(|part| part.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always"));
        prepends || scheme.is_some_and(|scheme| scheme != "never")
    }
}

/// The keys of the tokenizer in the text of a `tokenizer.json`; `rows` is the number of the embedding's rows. `special` names special
/// tokens (`bos_token`, ...).
///
/// # Errors
/// A tokenizer that is not BPE, one that splits texts by an unknown rule, or one with more tokens than rows.
pub(super) fn tokenizer_keys(
    path: &Path,
    fields: &Map<String, Value>,
    rows: usize,
    special: &Map<String, Value>,
) -> Result<Keys> {
    let json = Json { path, fields };
    let (tokens, kinds) = json.tokens(rows)?;
    let merges = json.merges()?;
    let level = json.parts("pre_tokenizer", "pretokenizers").into_iter();
    let mut level = level.filter(|part| part.get("type").and_then(Value::as_str) == Some("ByteLevel"));
    let mut keys: Keys = Vec::new();
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if level.next().is_some() {
        keys.push(("tokenizer.ggml.model", Meta::text("gpt2")));
        keys.push(("tokenizer.ggml.pre", Meta::text(json.pre()?)));
        // A space within a part would divide the merge at the wrong place.
        let part = |text: &str| text.replace(' ', "\u{120}");
        let texts = merges.iter().map(|[left, right]| format!("{} {}", part(left), part(right)));
        keys.push(("tokenizer.ggml.merges", Meta::Texts(texts.collect())));
    } else if json.at("model/byte_fallback") == Some(&Value::Bool(true)) {
        keys.push(("tokenizer.ggml.model", Meta::text("llama")));
        keys.push(("tokenizer.ggml.pre", Meta::text("default")));
        // llama.cpp merges by scores: these have the order of the merges.
        let made = |kind: &i32| if *kind == NORMAL { NEVER_MERGED } else { 0.0 };
        let mut scores: Vec<f32> = kinds.iter().map(made).collect();
        for (rank, [left, right]) in merges.iter().enumerate() {
            let score = ids.get(format!("{left}{right}").as_str()).map(|id| &mut scores[*id]);
            if let Some(score) = score.filter(|score| **score == NEVER_MERGED) {
                *score = -(rank as f32);
            }
        }
        keys.push(("tokenizer.ggml.scores", Meta::F32s(scores)));
        keys.push(("tokenizer.ggml.add_space_prefix", Meta::Bool(json.adds_space())));
    } else {
        return Err(
            json.error("model", "is of a kind that is not written as GGUF; byte-level and SentencePiece BPE are")
        );
    }
    let named = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ];
    for (name, key) in named {
        let id = special.get(name).and_then(Value::as_str).and_then(|token| ids.get(token));
        keys.extend(id.map(|id| (key, Meta::U32(*id as u32))));
    }
    let [begins, ends] = json.around();
    keys.push(("tokenizer.ggml.add_bos_token", Meta::Bool(begins)));
    keys.push(("tokenizer.ggml.add_eos_token", Meta::Bool(ends)));
    keys.push(("tokenizer.ggml.tokens", Meta::Texts(tokens.clone())));
    keys.push(("tokenizer.ggml.token_type", Meta::I32s(kinds)));
    Ok(keys)
}
