//! A model's tokenizer: `tokenizer.json` and the tokens that begin and end a text.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
#[cfg(not(target_arch = "wasm32"))]
use tokenizers::DecoderWrapper;
use tokenizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use super::sentencepiece::tokenizer_json;
use super::watch::{Work, watched};
use crate::model::companions;
use crate::model::config::{CONFIG, ModelConfig};
use crate::model::foreign::tokenizer_command;
use crate::model::json_fields::parse_object;
use crate::panics::caught;
use crate::setting::{Key, TRAINABLE_TOKEN_INDICES};
use crate::{Error, Result, files};

const FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SENTENCEPIECE: &str = "tokenizer.model";
/// Special tokens that chat templates use as variables.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A tokenizer of Hugging Face's tokenizers library, with the special tokens of the model.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos: Option<u32>,
    eos: Option<u32>,
    special: HashSet<u32>,
    /// Rows of the embedding, where there is one: no text may have a token beyond them.
    rows: Option<usize>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of `model_dir`; the begin and end tokens come from `tokenizer_config.json`,
    /// `special_tokens_map.json` or `config`, in this order. A vocabulary may go beyond the embedding: a text that has such a token is
    /// refused.
    ///
    /// # Errors
    /// A file that is missing or damaged, or a vocabulary with more tokens than the embedding has rows.
    pub fn from_dir(model_dir: &Path, config: &ModelConfig) -> Result<Self> {
        Self::from_dir_with(model_dir, config, &[])
    }

    /// Like [`Self::from_dir`], with further tokens.
    ///
    /// # Errors
    /// As [`Self::from_dir`], and tokens that the tokenizer has already.
    pub fn from_dir_with(model_dir: &Path, config: &ModelConfig, tokens: &[NewToken]) -> Result<Self> {
        let mut tokenizer = Self::of_text(model_dir, extended(model_dir, tokens)?)?;
        tokenizer.rows = Some(config.vocab_size);
        let own = |key: &str, id: Option<u32>| match id {
            Some(id) if id as usize >= config.vocab_size => {
                let problem = format!("is {id}, but the vocabulary ends at {} (vocab_size)", config.vocab_size - 1);
                Err(Error::field(model_dir.join(CONFIG), key, problem))
            }
            id => Ok(id),
        };
        if tokenizer.bos.is_none() {
            tokenizer.bos = own("bos_token_id", config.bos_token_id)?;
        }
        if tokenizer.eos.is_none() {
            tokenizer.eos = own("eos_token_id", config.eos_token_ids.first().copied())?;
        }
        // The tokens that the file puts around every text.
        tokenizer.encode("", true)?;
        Ok(tokenizer)
    }

    /// Like [`Self::from_dir`] for a directory without `config.json`.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn from_tokenizer_dir(dir: &Path) -> Result<Self> {
        Self::of_text(dir, tokenizer_text(dir)?)
    }

    /// The tokenizer of `dir` with this text as its `tokenizer.json`.
    fn of_text(dir: &Path, text: String) -> Result<Self> {
        let path = dir.join(FILE);
        if files::is_lfs_pointer(text.as_bytes()) {
            return Err(Error::lfs_pointer(&path));
        }
        let mut inner =
            parse(text).map_err(|e| Error::file(&path, format!("is not a tokenizer that can be read: {e}")))?;
        // Some files hold truncation or padding settings, which would silently cut or pad every text.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, e))?;
        if begins_only_texts_with_a_space(dir, &inner)? {
            inner.with_normalizer(None::<NormalizerWrapper>);
            inner.with_pre_tokenizer(Some(Metaspace::new(SPACE, PrependScheme::First, false)));
        }
        let id = |key: &str| match special_token(dir, key)? {
            Some((file, token)) => match inner.token_to_id(&token) {
                None => Err(Error::field(file, key, format!("is `{token}`, which {FILE} does not have"))),
                id => Ok(id),
            },
            None => Ok(None),
        };
        let (bos, eos) = (id("bos_token")?, id("eos_token")?);
        let added = inner.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect();
        Ok(Self { inner, path, bos, eos, special, rows: None })
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The directory that `tokenizer.json` lies in.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Encodes `text`; `add_special` adds the special tokens that the tokenizer puts around a text, usually a begin token.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.call("encode the text", text.len(), || self.inner.encode_fast(text, add_special))?;
        encoding.get_ids().iter().try_for_each(|id| self.check_row(*id))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`Self::encode`], with the byte range in `text` of each token. A token without text has an empty range; tokens that are
    /// parts of one character all have the range of that character.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_ranges(&self, text: &str, add_special: bool) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.call("encode the text", text.len(), || self.inner.encode(text, add_special))?;
        encoding.get_ids().iter().try_for_each(|id| self.check_row(*id))?;
        let ranges = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok((encoding.get_ids().to_vec(), ranges))
    }

    /// # Errors
    /// A token that the embedding has no row for.
    fn check_row(&self, id: u32) -> Result<()> {
        match self.rows {
            Some(rows) if id as usize >= rows => {
                let token = self.token(id).map_or(String::new(), |token| format!(" `{token}`"));
                let problem =
                    format!("gives the text the token{token} ({id}), but the embedding of config.json has {rows} rows");
                Err(Error::file(&self.path, problem))
            }
            _ => Ok(()),
        }
    }

    /// Decodes `ids` without special tokens.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.call("decode the tokens", 4 * ids.len(), || self.inner.decode(ids, true))
    }

    /// Decodes `ids` with special tokens.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.call("decode the tokens", 4 * ids.len(), || self.inner.decode(ids, false))
    }

    /// Calls the tokenizers crate on `bytes` bytes.
    fn call<T>(&self, task: &str, bytes: usize, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        let result = guarded(bytes, call);
        result.map_err(|problem| Error::file(&self.path, format!("cannot {task}: {problem}")))
    }

    /// The token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes of text that a token stands for; those of a special token spell its name.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if self.is_special(id) {
            return Some(token.into_bytes());
        }
        let of_byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = of_byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            return Some(vec![byte]);
        }
        let by_bytes: Option<Vec<u8>> = token.chars().map(byte_of_level).collect();
        match self.inner.get_decoder() {
            Some(decoder) if has_byte_level(decoder) => by_bytes.or(Some(token.into_bytes())),
            _ => Some(token.replace(SPACE, " ").into_bytes()),
        }
    }

    /// True for a special token, which is never part of ordinary text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id) || self.eos == Some(id) || self.bos == Some(id)
    }

    /// Special tokens by name (`bos_token`, `eos_token`, ...) for chat templates.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn special_tokens(&self) -> Result<Map<String, Value>> {
        let mut tokens = Map::new();
        for name in NAMED_TOKENS {
            if let Some((_, token)) = special_token(self.dir(), name)? {
                tokens.insert(name.to_owned(), token.into());
            }
        }
        for (name, id) in [("bos_token", self.bos), ("eos_token", self.eos)] {
            if let Some(token) = id.and_then(|id| self.token(id)).filter(|_| !tokens.contains_key(name)) {
                tokens.insert(name.to_owned(), token.into());
            }
        }
        Ok(tokens)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a text.
    ///
    /// # Errors
    /// The model's files name none.
    pub fn require_eos(&self) -> Result<u32> {
        let problem = "names no eos_token, nor does config.json: a model trained on these texts would never stop";
        let eos = self.eos.ok_or_else(|| Error::file(self.path.with_file_name("tokenizer_config.json"), problem))?;
        self.check_row(eos)?;
        Ok(eos)
    }
}

/// A token that is added to a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// Its text, which becomes this one token wherever it stands.
    pub content: String,
    /// True for a token that is not shown as text.
    pub special: bool,
    /// Its number, behind those of the other tokens.
    pub id: u32,
}

impl NewToken {
    /// Numbers texts as the next tokens of the tokenizer in `dir`. Each comes with the setting that asks for it, and whether it is special.
    ///
    /// # Errors
    /// A text that is a token already, or a tokenizer that cannot be read.
    pub fn of_texts<'a>(dir: &Path, texts: impl Iterator<Item = (Key, &'a str, bool)>) -> Result<Vec<Self>> {
        let mut texts = texts.peekable();
        if texts.peek().is_none() {
            return Ok(Vec::new());
        }
        let tokenizer = Tokenizer::from_tokenizer_dir(dir)?;
        let first = tokenizer.vocabulary();
        texts
            .enumerate()
            .map(|(at, (key, content, special))| match tokenizer.inner.token_to_id(content) {
                Some(id) => {
                    let problem = format!(
                        "{key} has {content:?}, which is a token of this model already, {id}; {TRAINABLE_TOKEN_INDICES} trains its row"
                    );
                    Err(Error::setting(key, problem))
                }
                None => Ok(Self { content: content.to_owned(), special, id: (first + at) as u32 }),
            })
            .collect()
    }
}

/// The text of a `tokenizer.json` for the tokenizer in `dir` with further tokens.
fn extended(dir: &Path, tokens: &[NewToken]) -> Result<String> {
    let text = tokenizer_text(dir)?;
    if tokens.is_empty() {
        return Ok(text);
    }
    let path = dir.join(FILE);
    let mut fields = parse_object(&path, &text)?;
    let added = fields.entry("added_tokens").or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = added else { return Err(Error::field(path, "added_tokens", "must be a list")) };
    list.extend(tokens.iter().map(|token| {
        let mut entry = json!({ "id": token.id });
        if let (Value::Object(entry), Value::Object(settings)) = (&mut entry, settings_of(token)) {
            entry.extend(settings);
        }
        entry
    }));
    serde_json::to_string(&fields).map_err(|e| Error::file(path, e))
}

/// What the files of a tokenizer say of an added token.
fn settings_of(token: &NewToken) -> Value {
    json!({
        "content": token.content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": token.special,
    })
}

/// Writes the tokenizer of `from` with further tokens into `to`, beside its other files, which are there already.
///
/// # Errors
/// A file that cannot be read or written.
pub fn save_with_tokens(from: &Path, to: &Path, tokens: &[NewToken]) -> Result<()> {
    files::write_atomically(&to.join(FILE), extended(from, tokens)?.as_bytes())?;
    let path = to.join(CONFIG_FILE);
    if !files::is_file(&path) {
        return Ok(());
    }
    let text = companions::text(&path)?;
    let mut settings = parse_object(&path, &text)?;
    let Some(Value::Object(decoder)) = settings.get_mut("added_tokens_decoder") else { return Ok(()) };
    decoder.extend(tokens.iter().map(|token| (token.id.to_string(), settings_of(token))));
    let text = serde_json::to_string_pretty(&settings).map_err(|e| Error::file(&path, e))?;
    files::write_atomically(&path, text.as_bytes())
}

/// True if the tokenizer of an adapter's directory has tokens that the model's has not.
pub fn brings_tokens(adapter: &Path, model: &Path) -> bool {
    let text_of = |dir: &Path| companions::text(&dir.join(FILE)).ok();
    let (Some(own), Some(of_model)) = (text_of(adapter), tokenizer_text(model).ok()) else { return false };
    let added = |text: &str| -> Option<usize> {
        #[derive(Deserialize)]
        struct Added {
            added_tokens: Vec<IgnoredAny>,
        }
        Some(serde_json::from_str::<Added>(text).ok()?.added_tokens.len())
    };
    own != of_model && added(&own) > added(&of_model)
}

/// The text of `tokenizer.json`, or that of the other file of a tokenizer which the directory has in its place.
///
/// # Errors
/// A file that is missing or damaged.
pub fn tokenizer_text(dir: &Path) -> Result<String> {
    let path = dir.join(FILE);
    match companions::is_file(&path) {
        false if companions::is_file(&dir.join(SENTENCEPIECE)) => converted(dir),
        false if tokenizer_command(dir).is_some() => Err(Error::file(dir, tokenizer_command(dir).unwrap_or_default())),
        _ => companions::text(&path),
    }
}

/// True for a decoder that maps each character of a token to a byte, as that of GPT-2 does.
#[cfg(not(target_arch = "wasm32"))]
fn has_byte_level(decoder: &DecoderWrapper) -> bool {
    serde_json::to_string(decoder).is_ok_and(|text| text.contains("ByteLevel"))
}

/// The byte that GPT-2's vocabulary writes as a character: printable ones as themselves, the others in their order from U+0100 on.
#[cfg(not(target_arch = "wasm32"))]
fn byte_of_level(character: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) if is_printable(byte) => Some(byte),
        _ => (0..=255u8).filter(|byte| !is_printable(*byte)).nth(code.checked_sub(0x100)? as usize),
    }
}

/// How SentencePiece writes a space.
const SPACE: char = '\u{2581}';

/// True for a tokenizer of Llama whose file puts a space before every piece of a text, also after special tokens. transformers reads
/// such a file so only where `tokenizer_config.json` says `"legacy": true`; otherwise the space stands at the beginning of the text
/// alone.
fn begins_only_texts_with_a_space(dir: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<bool> {
    let path = dir.join("tokenizer_config.json");
    if !companions::is_file(&path) || tokenizer.get_pre_tokenizer().is_some() {
        return Ok(false);
    }
    let text = companions::text(&path)?;
    let fields = parse_object(&path, &text)?;
    let class = fields.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    if !matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast") || fields.get("legacy") == Some(&Value::Bool(true)) {
        return Ok(false);
    }
    let prepends = |normalizer: &NormalizerWrapper| match normalizer {
        NormalizerWrapper::Prepend(prepend) => prepend.prepend == SPACE.to_string(),
        _ => false,
    };
    Ok(match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().iter().any(prepends),
        Some(normalizer) => prepends(normalizer),
        None => false,
    })
}

/// The text of a `tokenizer.json` for a directory with `tokenizer.model` alone.
fn converted(dir: &Path) -> Result<String> {
    let path = dir.join(SENTENCEPIECE);
    let bytes = files::read(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    if files::is_lfs_pointer(&bytes) {
        return Err(Error::lfs_pointer(&path));
    }
    let object = |name: &str| -> Result<Map<String, Value>> {
        let path = dir.join(name);
        if !companions::is_file(&path) {
            return Ok(Map::new());
        }
        let text = companions::text(&path)?;
        parse_object(&path, &text)
    };
    let (settings, added) = (object("tokenizer_config.json")?, object("added_tokens.json")?);
    tokenizer_json(&bytes, &settings, &added).map_err(|problem| {
        let advice = tokenizer_command(dir).unwrap_or_default();
        Error::file(&path, format!("{problem}; the directory {advice}"))
    })
}

/// Parses a tokenizer from JSON.
fn parse(text: String) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_str::<IgnoredAny>(&text).map_err(|e| e.to_string())?;
    guarded(text.len(), || tokenizers::Tokenizer::from_bytes(text))
}

/// Calls the tokenizers crate on `bytes` bytes. It panics on some damaged files; such a panic becomes an ordinary error.
fn guarded<T>(bytes: usize, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match caught(|| watched(Work::Tokenizer, bytes, call)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("one of its parts is damaged".to_owned()),
    }
}

/// A special token given as a string or as an object with `content`, and the file that gives it.
fn special_token(dir: &Path, key: &str) -> Result<Option<(PathBuf, String)>> {
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.join(file);
        if !companions::is_file(&path) {
            continue;
        }
        let text = companions::text(&path)?;
        let token = match parse_object(&path, &text)?.remove(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Object(mut object)) => object.remove("content"),
            other => other,
        };
        let Some(Value::String(token)) = token else {
            return Err(Error::field(path, key, "must be a token's text, or an object with its `content`"));
        };
        return Ok(Some((path, token)));
    }
    Ok(None)
}

/// Decodes tokens one by one: characters appear only when they are complete, and spaces equal those of the whole text.
pub struct StreamDecoder {
    /// The tokens shown last, which decide about the space before the next token, followed by the tokens that wait.
    window: Vec<u32>,
    /// Number of shown tokens in the window, and their text.
    shown_tokens: usize,
    shown: String,
}

impl StreamDecoder {
    /// Starts a stream after `context`, the tokens of the prompt.
    ///
    /// # Errors
    /// Tokens that the tokenizer refuses.
    pub fn after(tokenizer: &Tokenizer, context: &[u32]) -> Result<Self> {
        let shown = tokenizer.decode(context)?;
        Ok(Self { window: context.to_vec(), shown_tokens: context.len(), shown })
    }

    /// Adds `token` and returns the text that it completes; empty while a character lacks bytes. The tokenizer is that of the beginning.
    ///
    /// # Errors
    /// A token that the tokenizer refuses.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window)?;
        let new = text.get(self.shown.len()..).unwrap_or_default().to_owned();
        if new.is_empty() || new.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.window.drain(..self.shown_tokens);
        self.shown_tokens = self.window.len();
        self.shown = tokenizer.decode(&self.window)?;
        Ok(new)
    }

    /// Returns the text of the waiting tokens, with replacement characters for incomplete ones.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window)?;
        Ok(text.get(self.shown.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// The tokenizer of the small model in `../shared`, or none, with a word of why.
    pub(crate) fn stories() -> Option<Tokenizer> {
        let dir = Path::new("../shared/models/stories260K");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not there", dir.display());
            return None;
        }
        let config = ModelConfig::from_file(&dir.join("config.json")).unwrap();
        Some(Tokenizer::from_dir(dir, &config).unwrap())
    }

    /// A directory with a tokenizer of the words `<s> </s> a b`, with ids from 0 on.
    pub(crate) fn tiny_dir() -> (tempfile::TempDir, ModelConfig) {
        let dir = tempfile::tempdir().unwrap();
        let special = |id: u32, text: &str| {
            format!(
                r#"{{"id": {id}, "content": "{text}", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}}"#
            )
        };
        let json = format!(
            r#"{{"version": "1.0", "added_tokens": [{}, {}], "normalizer": null,
            "truncation": {{"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
            "padding": null, "pre_tokenizer": {{"type": "WhitespaceSplit"}}, "decoder": null,
            "post_processor": {{"type": "TemplateProcessing",
                "single": [{{"SpecialToken": {{"id": "<s>", "type_id": 0}}}},
                    {{"Sequence": {{"id": "A", "type_id": 0}}}}],
                "pair": [{{"Sequence": {{"id": "A", "type_id": 0}}}}, {{"Sequence": {{"id": "B", "type_id": 1}}}}],
                "special_tokens": {{"<s>": {{"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}}}},
            "model": {{"type": "WordLevel", "vocab": {{"<s>": 0, "</s>": 1, "a": 2, "b": 3}}, "unk_token": "<s>"}}}}"#,
            special(0, "<s>"),
            special(1, "</s>")
        );
        fs::write(dir.path().join(FILE), json).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "</s>"}}"#).unwrap();
        let mut config = crate::lora::targets::tests::model();
        config.vocab_size = 4;
        (dir, config)
    }

    #[test]
    fn a_truncation_left_in_the_file_does_not_cut_texts() {
        let (dir, config) = tiny_dir();
        let tokenizer = Tokenizer::from_dir(dir.path(), &config).unwrap();
        assert_eq!(tokenizer.encode("a b a b", true).unwrap(), [0, 2, 3, 2, 3]);
        assert_eq!(tokenizer.encode("a b", false).unwrap(), [2, 3]);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(1)));
    }

    #[test]
    fn files_that_disagree_are_refused() {
        let (dir, mut config) = tiny_dir();
        let message = |config: &ModelConfig| Tokenizer::from_dir(dir.path(), config).err().unwrap().to_string();
        config.vocab_size = 3;
        let smaller = Tokenizer::from_dir(dir.path(), &config).unwrap();
        assert_eq!(smaller.encode("a a", true).unwrap(), [0, 2, 2]);
        for beyond in [smaller.encode("a b", true).map(|_| ()), smaller.encode_with_ranges("b", false).map(|_| ())] {
            let beyond = beyond.unwrap_err().to_string();
            assert!(beyond.contains("the token `b` (3)") && beyond.contains("has 3 rows"), "{beyond}");
        }
        config.vocab_size = 1;
        let beyond = message(&config);
        assert!(beyond.contains("`bos_token_id`: is 1, but the vocabulary ends at 0"), "{beyond}");
        config.vocab_size = 4;
        let settings = dir.path().join("tokenizer_config.json");
        fs::write(&settings, r#"{"eos_token": "<end>"}"#).unwrap();
        assert!(message(&config).contains("`eos_token`: is `<end>`, which tokenizer.json does not have"));
        fs::write(&settings, r#"{"eos_token": 3}"#).unwrap();
        assert!(message(&config).contains("`eos_token`: must be a token's text"));
        fs::remove_file(&settings).unwrap();
        config.eos_token_ids.clear();
        let without_end = Tokenizer::from_dir(dir.path(), &config).unwrap();
        assert!(without_end.require_eos().unwrap_err().to_string().contains("never stop"));
        fs::write(dir.path().join(FILE), "{}").unwrap();
        assert!(message(&config).contains("tokenizer.json: is not a tokenizer"));
        fs::write(dir.path().join(FILE), "version https://git-lfs.github.com/spec/v1\n").unwrap();
        assert!(message(&config).contains("tokenizer.json: is a Git LFS pointer"));
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(message(&config).contains("tokenizer.json: cannot be read"));
        fs::write(dir.path().join("vocab.json"), "{}").unwrap();
        assert!(message(&config).contains("holds vocab.json, but no tokenizer.json; write it: python"));
        fs::write(dir.path().join(SENTENCEPIECE), "IQ== 0\n").unwrap();
        let beside = message(&config);
        assert!(
            beside.contains("tokenizer.model: is no SentencePiece model; the directory holds tokenizer.model"),
            "{beside}"
        );
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_named_with_their_file() {
        let (dir, mut config) = tiny_dir();
        let path = dir.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let message = |config: &ModelConfig| Tokenizer::from_dir(dir.path(), config).err().unwrap().to_string();
        fs::write(&path, good.replace(r#""ids": [0]"#, r#""ids": [4294967295]"#)).unwrap();
        let beyond = message(&config);
        assert!(beyond.contains("tokenizer.json: gives the text the token (4294967295)"), "{beyond}");
        fs::write(&path, &good).unwrap();
        fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
        config.eos_token_ids = vec![4_294_967_294];
        let beyond = message(&config);
        assert!(
            beyond.contains("config.json: `eos_token_id`: is 4294967294, but the vocabulary ends at 3"),
            "{beyond}"
        );
        config.eos_token_ids = vec![1];
        config.bos_token_id = Some(4);
        assert!(message(&config).contains("`bos_token_id`: is 4, but"), "{}", message(&config));
    }

    #[test]
    fn a_panic_of_the_tokenizers_crate_is_an_error() {
        let (dir, config) = tiny_dir();
        let path = dir.path().join(FILE);
        let damaged = fs::read_to_string(&path).unwrap().replace(r#"{"<s>": {"id": "<s>""#, r#"{"<x>": {"id": "<s>""#);
        fs::write(&path, damaged).unwrap();
        let message = Tokenizer::from_dir(dir.path(), &config).err().unwrap().to_string();
        assert!(message.contains("one of its parts is damaged") || message.contains("cannot be read"), "{message}");
    }

    #[test]
    fn a_real_tokenizer_equals_transformers() {
        let Some(tokenizer) = stories() else { return };
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        assert_eq!(tokenizer.encode("Once upon", true).unwrap(), [1, 403, 407]);
        assert_eq!(tokenizer.encode("Hello world", false).unwrap(), [346, 306, 414, 263, 304, 341]);
        assert_eq!(tokenizer.decode(&[1, 403, 407]).unwrap(), "Once upon");
    }

    #[test]
    fn a_stream_shows_the_whole_text_and_no_broken_character() {
        let Some(tokenizer) = stories() else { return };
        let text = "Once upon a time, a caf\u{e9} had \u{1f600}  two   spaces\nand \u{65e5}\u{672c}.";
        let ids = tokenizer.encode(text, true).unwrap();
        for context in [0, 1, 3] {
            let mut stream = StreamDecoder::after(&tokenizer, &ids[..context]).unwrap();
            let mut shown = tokenizer.decode(&ids[..context]).unwrap();
            let mut pieces = 0;
            for id in &ids[context..] {
                let piece = stream.push(&tokenizer, *id).unwrap();
                assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
                pieces += usize::from(!piece.is_empty());
                shown += &piece;
            }
            assert_eq!(shown + &stream.finish(&tokenizer).unwrap(), text);
            assert!(pieces > 20, "{pieces}");
        }
        let mut stream = StreamDecoder::after(&tokenizer, &ids[..3]).unwrap();
        let first_byte = tokenizer.inner.token_to_id("<0xF0>").unwrap();
        assert_eq!(stream.push(&tokenizer, first_byte).unwrap(), "");
        assert_eq!(stream.finish(&tokenizer).unwrap(), "\u{fffd}");
    }
}
