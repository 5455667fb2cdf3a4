//! The tokenizer of a GGUF file as the files that transformers has: `tokenizer.json` and `tokenizer_config.json`.
//!
//! Byte-level BPE (`tokenizer.ggml.model` is `gpt2`) has its merges in the file, and the name of the rule by which texts are split.
//! SentencePiece BPE (`llama`) has a score for each token, from which the merges follow.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::gguf_file::GgufFile;
use crate::Result;

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
const TOKENS: &str = "tokenizer.ggml.tokens";

/// The kinds of a token (`tokenizer.ggml.token_type`) that matter here.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// How a byte-level tokenizer splits texts into the pieces that merges stay within.
struct Split {
    /// The values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    rule: Rule,
    /// Whole pieces that are tokens are taken without looking at the merges.
    ignore_merges: bool,
    /// `tokenizer.ggml.add_bos_token` where it is absent.
    begins: bool,
    /// Texts are brought into Unicode's composed form first.
    composed: bool,
}

/// The pieces of a text.
enum Rule {
    /// GPT-2's words.
    Gpt2,
    /// GPT-2's words, and every digit alone.
    DigitsAndGpt2,
    /// The pieces that the expression finds.
    Words(fn() -> String),
}

const PLAIN: Split = Split { names: &[], rule: Rule::Gpt2, ignore_merges: false, begins: false, composed: false };

/// The rule of Llama 3, with numbers of up to three digits or other ones.
fn llama3(numbers: &str, letter: &str, other: &str) -> String {
    format!(
        r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{letter}+|{numbers}| ?[^\s{other}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The rule of Mistral's Tekken, with what may follow a word, and numbers.
fn tekken(after: &str, numbers: &str) -> String {
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let before = r"[^\r\n\p{L}\p{N}]?";
    format!(
        r"{before}{upper}*{lower}+{after}|{before}{upper}+{lower}*{after}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

const SPLITS: [Split; 8] = [
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        rule: Rule::Words(|| llama3(r"\p{N}{1,3}", r"\p{L}", r"\p{L}")),
        ignore_merges: true,
        begins: true,
        ..PLAIN
    },
    Split {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        rule: Rule::Words(|| llama3(r"\p{N}{1,3}", r"\p{L}", r"\p{L}")),
        ..PLAIN
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        rule: Rule::Words(|| llama3(r"\p{N}", r"\p{L}", r"\p{L}")),
        composed: true,
        ..PLAIN
    },
    Split {
        names: &["qwen35"],
        rule: Rule::Words(|| llama3(r"\p{N}", r"[\p{L}\p{M}]", r"\p{L}\p{M}")),
        composed: true,
        ..PLAIN
    },
    Split { names: &["gpt-2", "phi-2", "olmo", "mpt", "exaone4"], ..PLAIN },
    Split { names: &["smollm", "starcoder", "refact", "command-r"], rule: Rule::DigitsAndGpt2, ..PLAIN },
    Split {
        names: &["tekken"],
        rule: Rule::Words(|| tekken("", r"\p{N}")),
        ignore_merges: true,
        begins: true,
        ..PLAIN
    },
    Split {
        names: &["gpt-4o", "llama4"],
        rule: Rule::Words(|| tekken(&format!("{CONTRACTIONS}?"), r"\p{N}{1,3}")),
        ..PLAIN
    },
];

/// The name of the rule that has this expression, or that of GPT-2 with single digits or without (`digits`). Of several names the one
/// whose rule treats whole pieces alike.
pub(crate) fn split_name(expression: Option<&str>, digits: bool, ignore_merges: bool) -> Option<&'static str> {
    let fits = |split: &&Split| match (&split.rule, expression) {
        (Rule::Gpt2, None) => !digits,
        (Rule::DigitsAndGpt2, None) => digits,
        (Rule::Words(rule), Some(expression)) => rule() == expression,
        _ => false,
    };
    let alike = SPLITS.iter().filter(fits).find(|split| split.ignore_merges == ignore_merges);
    alike.and_then(|split| split.names.first().copied())
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, usize>,
    merges: Vec<[&'a str; 2]>,
}

#[derive(Serialize)]
struct Json<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

/// True if the file has a tokenizer.
pub(super) fn is_there(file: &GgufFile) -> bool {
    file.values.contains_key(TOKENS)
}

/// The tokens by id, in the spelling of `tokenizer.json`, and their kinds.
fn tokens(file: &GgufFile) -> Result<(Vec<String>, Vec<i64>)> {
    let tokens = file.texts(TOKENS)?.unwrap_or_default();
    let kinds = file.numbers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
    if kinds.len() != tokens.len() {
        let problem = format!("has {} values for {} tokens", kinds.len(), tokens.len());
        return Err(file.error("tokenizer.ggml.token_type", problem));
    }
    Ok((tokens, kinds))
}

/// The text of `tokenizer.json`.
///
/// # Errors
/// A kind of tokenizer or a rule of splitting that is not supported, or lists that do not fit together.
pub(super) fn tokenizer_json(file: &GgufFile) -> Result<String> {
    let key = "tokenizer.ggml.model";
    match file.text(key)?.ok_or_else(|| file.error(key, "is missing"))? {
        "gpt2" => byte_level(file),
        "llama" => sentencepiece(file),
        other => {
            let problem =
                format!("`{other}` is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece)");
            Err(file.error(key, problem))
        }
    }
}

fn byte_level(file: &GgufFile) -> Result<String> {
    let split = split_of(file)?;
    let (tokens, kinds) = tokens(file)?;
    let key = "tokenizer.ggml.merges";
    let merges = file.texts(key)?.ok_or_else(|| file.error(key, "is missing"))?;
    let pair = |merge: &'_ String| -> Result<[String; 2]> {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            file.error(key, format!("has `{merge}`, which is not two tokens with a space between them"))
        })?;
        Ok([left.to_owned(), right.to_owned()])
    };
    let merges: Vec<[String; 2]> = merges.iter().map(pair).collect::<Result<_>>()?;
    let level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let before = match &split.rule {
        Rule::Gpt2 => level(true),
        Rule::DigitsAndGpt2 => json!({
            "type": "Sequence", "pretokenizers": [{ "type": "Digits", "individual_digits": true }, level(true)],
        }),
        Rule::Words(rule) => json!({
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": rule() }, "behavior": "Isolated", "invert": false },
                level(false),
            ],
        }),
    };
    let json = Json {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: added_tokens(&tokens, &kinds),
        normalizer: if split.composed { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: before,
        post_processor: around(file, &tokens, split.begins)?,
        decoder: level(true),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: split.ignore_merges,
            vocab: tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect(),
            merges: merges.iter().map(|[left, right]| [left.as_str(), right.as_str()]).collect(),
        },
    };
    serde_json::to_string(&json).map_err(|e| file.error(TOKENS, e))
}

fn split_of(file: &GgufFile) -> Result<&'static Split> {
    let key = "tokenizer.ggml.pre";
    let names = || SPLITS.iter().flat_map(|split| split.names).copied().collect::<Vec<_>>().join(", ");
    let missing =
        || file.error(key, format!("is missing, so that nothing says how texts are split; known are {}", names()));
    let name = file.text(key)?.ok_or_else(missing)?;
    SPLITS
        .iter()
        .find(|split| split.names.contains(&name))
        .ok_or_else(|| file.error(key, format!("`{name}` is not supported; supported are {}", names())))
}

fn sentencepiece(file: &GgufFile) -> Result<String> {
    let (mut tokens, kinds) = tokens(file)?;
    let gemma = file.text("general.architecture")?.is_some_and(|name| name.starts_with("gemma"));
    if gemma {
        // Tokens of several spaces are stored as spaces.
        tokens.iter_mut().filter(|token| token.contains(' ')).for_each(|token| *token = token.replace(' ', SPACE));
    }
    let key = "tokenizer.ggml.scores";
    let scores = file.floats(key)?.ok_or_else(|| file.error(key, "is missing"))?;
    if scores.len() != tokens.len() {
        return Err(file.error(key, format!("has {} values for {} tokens", scores.len(), tokens.len())));
    }
    let vocab: BTreeMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let merges = merges(&tokens, &scores, gemma);
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    // As in llama.cpp, the space stands before each piece between special tokens.
    let normalizer = match prefix {
        true => json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": SPACE }, replace] }),
        false => replace,
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = id_of(file, "unknown", tokens.len())?.or_else(|| kinds.iter().position(|kind| *kind == UNKNOWN));
    let json = Json {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: added_tokens(&tokens, &kinds),
        normalizer,
        pre_tokenizer: Value::Null,
        post_processor: around(file, &tokens, true)?,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: unknown.map(|id| tokens[id].as_str()),
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab,
            merges,
        },
    };
    serde_json::to_string(&json).map_err(|e| file.error(TOKENS, e))
}

/// The merges that make each token out of two shorter ones, those of the highest scores first; of equal scores those that were
/// generated first, by the tokens' ids. Gemma's scores do not follow its merges, but its ids do.
fn merges<'a>(tokens: &'a [String], scores: &[f32], by_id: bool) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = cuts.filter_map(|(left, right)| Some(([*ids.get(left)?, *ids.get(right)?], [left, right])));
        let mut ways: Vec<_> = known.collect();
        ways.sort_by_key(|(parts, _)| *parts);
        merges.extend(ways.into_iter().map(|(_, parts)| (id, parts)));
    }
    if !by_id {
        merges.sort_by(|(a, _), (b, _)| scores[*b].total_cmp(&scores[*a]));
    }
    merges.into_iter().map(|(_, parts)| parts).collect()
}

fn added_tokens(tokens: &[String], kinds: &[i64]) -> Vec<Value> {
    let added = tokens.iter().zip(kinds).enumerate();
    let added =
        added.filter(|(_, (token, kind))| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty());
    let entry = |(id, (token, kind)): (usize, (&String, &i64))| {
        json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": *kind != USER_DEFINED,
        })
    };
    added.map(entry).collect()
}

/// The id that the key of a special token gives; None where it is no token, as some files have it.
fn id_of(file: &GgufFile, name: &str, tokens: usize) -> Result<Option<usize>> {
    let id = file.number(&format!("tokenizer.ggml.{name}_token_id"))?;
    Ok(id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < tokens))
}

/// The tokens around every text: `begins` is true if the model has a begin token where no key says.
fn around(file: &GgufFile, tokens: &[String], begins: bool) -> Result<Value> {
    let wanted = [
        ("bos", file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins)),
        ("eos", file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false)),
    ];
    let mut special = Map::new();
    let [mut single, mut pair] = [0, 1].map(|_| Vec::new());
    let sequence = |list: &mut Vec<Value>, id: &str, kind: usize| {
        list.push(json!({ "Sequence": { "id": id, "type_id": kind } }));
    };
    let token = |id: usize, kind: usize| json!({ "SpecialToken": { "id": tokens[id], "type_id": kind } });
    let mut ids = [None; 2];
    for (at, (name, wanted)) in wanted.into_iter().enumerate() {
        if let Some(id) = id_of(file, name, tokens.len())?.filter(|_| wanted) {
            ids[at] = Some(id);
            special.insert(tokens[id].clone(), json!({ "id": tokens[id], "ids": [id], "tokens": [tokens[id]] }));
        }
    }
    if special.is_empty() {
        return Ok(Value::Null);
    }
    single.extend(ids[0].map(|id| token(id, 0)));
    sequence(&mut single, "A", 0);
    single.extend(ids[1].map(|id| token(id, 0)));
    for (kind, id) in ["A", "B"].into_iter().enumerate() {
        pair.extend(ids[0].map(|id| token(id, kind)));
        sequence(&mut pair, id, kind);
        pair.extend(ids[1].map(|id| token(id, kind)));
    }
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special }))
}

/// The object of `tokenizer_config.json`: special tokens and chat templates.
pub(super) fn tokenizer_config(file: &GgufFile) -> Result<Map<String, Value>> {
    let (tokens, _) = tokens(file)?;
    let mut fields = Map::new();
    fields.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        if let Some(id) = id_of(file, key, tokens.len())? {
            fields.insert(format!("{name}_token"), tokens[id].clone().into());
        }
    }
    let main = file.text("tokenizer.chat_template")?;
    let mut named = Vec::new();
    for name in file.texts("tokenizer.chat_templates")?.unwrap_or_default() {
        let template = file.text(&format!("tokenizer.chat_template.{name}"))?;
        named.extend(template.map(|template| json!({ "name": name, "template": template })));
    }
    match (main, named.is_empty()) {
        (Some(main), true) => {
            fields.insert("chat_template".to_owned(), main.into());
        }
        (main, false) => {
            named.extend(main.map(|template| json!({ "name": "default", "template": template })));
            fields.insert("chat_template".to_owned(), named.into());
        }
        (None, true) => {}
    }
    Ok(fields)
}

/// The ids of the tokens that end a text, a turn or a message.
pub(super) fn end_tokens(file: &GgufFile) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = file.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        ids.extend(id.filter(|id| *id < u64::from(u32::MAX)));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
