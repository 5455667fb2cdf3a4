//! SentencePiece's `tokenizer.model` as a `tokenizer.json`.
//!
//! Models such as Llama's and Mistral's, BPE without rules of unicode, become what transformers' converter for Llama makes of them. All
//! others follow their own settings, so that texts are cut as by SentencePiece itself; the parts are those of transformers'
//! `SpmConverter.build_tokenizer_from_spm_proto`.

mod model;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use model::{CONTROL, Kind, Model, Piece, UNKNOWN, USER_DEFINED};

/// What stands for a space in pieces.
const SPACE: &str = "\u{2581}";

/// The merges that make the pieces out of shorter ones, those of the highest scores first. The ways to make one piece are in the order
/// of the ids of their parts.
/// With `normal_alone`, user-defined and control pieces are neither made nor parts.
fn merges(ids: &HashMap<&str, usize>, pieces: &[Piece], normal_alone: bool) -> Vec<[String; 2]> {
    let mut merges = Vec::new();
    let takes = |piece: &Piece| !normal_alone || piece.is_normal();
    let id_of = |text: &str| ids.get(text).copied().filter(|id| takes(&pieces[*id]));
    for piece in pieces.iter().filter(|piece| takes(piece)) {
        let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        let known = splits.filter_map(|(left, right)| Some(([id_of(left)?, id_of(right)?], left, right)));
        let mut ways: Vec<_> = known.collect();
        ways.sort_by_key(|(parts, ..)| *parts);
        merges.extend(ways.into_iter().map(|(_, left, right)| (piece.score, [left.to_owned(), right.to_owned()])));
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    merges.into_iter().map(|(_, merge)| merge).collect()
}

/// The text of a `tokenizer.json` for the model in `bytes`. `settings` is the object of `tokenizer_config.json`, and `added` that of
/// `added_tokens.json`, or empty.
///
/// # Errors
/// A sentence on what the file is instead of a model that can be read.
pub(super) fn tokenizer_json(
    bytes: &[u8],
    settings: &Map<String, Value>,
    added: &Map<String, Value>,
) -> Result<String, String> {
    let model = Model::parse(bytes).ok_or("is no SentencePiece model")?;
    if model.kind == Kind::Other {
        return Err("is a SentencePiece model of words or characters, neither unigram nor BPE".to_owned());
    }
    if model.space_behind {
        return Err("is a SentencePiece model with spaces behind words (treat_whitespace_as_suffix)".to_owned());
    }
    let unknown = model.text(Some(model.unknown)).ok_or("names an unknown piece that it does not have")?;
    let ids: HashMap<&str, usize> = model.pieces.iter().enumerate().map(|(id, p)| (p.text.as_str(), id)).collect();
    let as_llama = model.kind == Kind::Bpe && model.normalizer.charsmap.is_empty();
    let Surroundings { normalizers, pre_tokenizers, decoders } =
        if as_llama { Surroundings::of_llama(&model) } else { Surroundings::of_model(&model, settings) };
    let inner = match model.kind {
        Kind::Unigram => json!({
            "type": "Unigram",
            "unk_id": model.unknown,
            "vocab": model.pieces.iter().map(|p| json!([p.text, p.score])).collect::<Vec<_>>(),
            "byte_fallback": model.byte_fallback,
        }),
        _ => json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": !as_llama && model.pieces.iter().any(|p| p.kind == USER_DEFINED),
            "vocab": model.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), json!(id))).collect::<Map<_, _>>(),
            "merges": merges(&ids, &model.pieces, !as_llama),
        }),
    };
    let sequence = |name: &str, parts: Vec<Value>| match parts.is_empty() {
        true => Value::Null,
        false => json!({ "type": "Sequence", name: parts }),
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&model, settings, added, as_llama),
        "normalizer": sequence("normalizers", normalizers),
        "pre_tokenizer": sequence("pretokenizers", pre_tokenizers),
        "post_processor": post_processor(&model, &ids, settings),
        "decoder": sequence("decoders", decoders),
        "model": inner,
    });
    Ok(json.to_string())
}

/// What happens to a text before it is cut and to pieces that become a text again.
struct Surroundings {
    normalizers: Vec<Value>,
    pre_tokenizers: Vec<Value>,
    decoders: Vec<Value>,
}

impl Surroundings {
    /// A space before every stretch of text, and spaces in a row as they are, whatever the model says.
    fn of_llama(model: &Model) -> Self {
        let adds_space = model.normalizer.adds_space;
        let prefix = adds_space.then(|| json!({ "type": "Prepend", "prepend": SPACE }));
        let strip = adds_space.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        let decoders = [replaced(SPACE, " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
        Self {
            normalizers: prefix.into_iter().chain([replaced(" ", SPACE)]).collect(),
            pre_tokenizers: Vec::new(),
            decoders: decoders.into_iter().chain(strip).collect(),
        }
    }

    /// The steps of the model's own settings, in SentencePiece's order. `legacy` of `settings` says whether each stretch of text between
    /// special tokens begins with a space or the text alone.
    fn of_model(model: &Model, settings: &Map<String, Value>) -> Self {
        let normalizer = &model.normalizer;
        let legacy = settings.get("legacy").and_then(Value::as_bool).unwrap_or(true);
        let mut normalizers = Vec::new();
        if !normalizer.charsmap.is_empty() {
            let map = base64::encode(&normalizer.charsmap);
            normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
        }
        if normalizer.removes_spaces {
            normalizers.extend([replaced_matches(r"\A +| +\z", ""), replaced_matches(" {2,}", " ")]);
        }
        if normalizer.escapes_spaces {
            normalizers.push(replaced(" ", SPACE));
            if normalizer.removes_spaces {
                // SentencePiece takes its own sign for a space at the end of a text, though not at its beginning.
                normalizers.push(replaced_matches(&format!(r"{SPACE}+\z"), ""));
            }
        }
        let mut pre_tokenizers = Vec::new();
        if normalizer.adds_space {
            if legacy {
                // Metaspace adds no space to a text that begins with one; SentencePiece does.
                normalizers.push(replaced_matches(&format!(r"\A{SPACE}"), &SPACE.repeat(2)));
            }
            let scheme = if legacy { "always" } else { "first" };
            pre_tokenizers
                .push(json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false }));
        }
        let mut whole: Vec<&str> = model
            .pieces
            .iter()
            .filter(|p| p.kind == USER_DEFINED && !p.text.is_empty())
            .map(|p| p.text.as_str())
            .collect();
        whole.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
        if !whole.is_empty() {
            let pattern = whole.into_iter().map(regex::escape).collect::<Vec<_>>().join("|");
            let pattern = json!({ "Regex": pattern });
            pre_tokenizers
                .push(json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false }));
        }
        let mut decoders = vec![replaced(SPACE, " ")];
        if model.byte_fallback {
            decoders.push(json!({ "type": "ByteFallback" }));
        }
        if normalizer.adds_space || model.byte_fallback {
            decoders.push(json!({ "type": "Fuse" }));
        }
        if normalizer.adds_space {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Self { normalizers, pre_tokenizers, decoders }
    }
}

fn replaced(text: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": text }, "content": content })
}

fn replaced_matches(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "Regex": pattern }, "content": content })
}

/// The tokens that are found in a text before it is cut: those of the model, then those of the settings, which count where both have an
/// id. User-defined pieces of the model are among them on demand.
fn added_tokens(
    model: &Model,
    settings: &Map<String, Value>,
    added: &Map<String, Value>,
    user_defined: bool,
) -> Vec<Value> {
    let token = |id: u64, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special,
        })
    };
    let mut tokens: std::collections::BTreeMap<u64, Value> = std::collections::BTreeMap::new();
    for (id, piece) in (0..).zip(&model.pieces) {
        if [UNKNOWN, CONTROL].contains(&piece.kind) || user_defined && piece.kind == USER_DEFINED {
            tokens.insert(id, token(id, &piece.text, piece.kind != USER_DEFINED));
        }
    }
    let is_named = |content: &str| {
        let of = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()) == Some(content);
        settings.iter().any(|(key, value)| match value {
            Value::Array(list) => key == "additional_special_tokens" && list.iter().any(of),
            value => key.ends_with("_token") && of(value),
        })
    };
    for (content, id) in added {
        if let Some(id) = id.as_u64() {
            tokens.insert(id, token(id, content, is_named(content)));
        }
    }
    for (id, settings) in settings.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let content = settings.get("content").and_then(Value::as_str);
        if let (Ok(id), Some(content)) = (id.parse(), content) {
            let mut token = token(id, content, false);
            for key in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
                if let Some(flag) = settings.get(key).filter(|flag| flag.is_boolean()) {
                    token[key] = flag.clone();
                }
            }
            tokens.insert(id, token);
        }
    }
    tokens.into_values().collect()
}

/// Puts the begin token before a text and the end token after it, as the settings say; without settings the begin token alone.
fn post_processor(model: &Model, ids: &HashMap<&str, usize>, settings: &Map<String, Value>) -> Value {
    let flag = |key: &str, default: bool| settings.get(key).and_then(Value::as_bool).unwrap_or(default);
    let named = |key: &str, id: Option<usize>| {
        let given = settings.get(key).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
        given.or_else(|| model.text(id)).filter(|text| ids.contains_key(text)).map(str::to_owned)
    };
    let begin = named("bos_token", model.begin).filter(|_| flag("add_bos_token", true));
    let end = named("eos_token", model.end).filter(|_| flag("add_eos_token", false));
    let special = |text: &String, sequence: u32| json!({ "SpecialToken": { "id": text, "type_id": sequence } });
    let around = |name: &str, sequence: u32| {
        let text = json!({ "Sequence": { "id": name, "type_id": sequence } });
        let begin = begin.iter().map(|token| special(token, sequence));
        begin.chain([text]).chain(end.iter().map(|token| special(token, sequence))).collect::<Vec<_>>()
    };
    let tokens: Map<String, Value> = [&begin, &end]
        .into_iter()
        .flatten()
        .map(|text| {
            let id = ids[text.as_str()];
            (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] }))
        })
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
        [&[(number << 3 | 2) as u8, bytes.len() as u8], bytes].concat()
    }

    /// A model of these pieces and kinds, with settings of the trainer and the normalizer as bytes of their messages.
    fn model(pieces: &[(&str, u8)], trainer: &[u8], normalizer: &[u8]) -> Vec<u8> {
        // The score of each is lower than that of the one before.
        let piece = |(at, (text, kind)): (usize, &(&str, u8))| {
            let score = [vec![2 << 3 | 5], (-(at as f32)).to_le_bytes().to_vec()].concat();
            field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, *kind]].concat())
        };
        let pieces: Vec<u8> = pieces.iter().enumerate().flat_map(piece).collect();
        [pieces, field(2, trainer), field(3, normalizer)].concat()
    }

    const BPE: &[u8] = &[3 << 3, 2];
    const PLAIN: &[u8] = &[4 << 3, 0];

    #[test]
    fn other_models_are_refused() {
        let none = Map::new();
        let refused = |bytes: &[u8]| tokenizer_json(bytes, &none, &none).unwrap_err();
        assert!(refused(b"IQ== 0\nIg== 1\n").contains("no SentencePiece model"));
        assert!(refused(b"").contains("no SentencePiece model"));
        let pieces = [("<unk>", 2), ("a", 1)];
        assert!(refused(&model(&pieces, &[3 << 3, 4], PLAIN)).contains("of words or characters"));
        let behind = [BPE, &[0xc0, 1, 1]].concat();
        assert!(refused(&model(&pieces, &behind, PLAIN)).contains("treat_whitespace_as_suffix"));
        let cut = model(&pieces, BPE, PLAIN);
        assert!(refused(&cut[..cut.len() - 1]).contains("no SentencePiece model"));
    }

    #[test]
    fn pieces_become_merges_and_settings_become_tokens() {
        let pieces = [
            ("<unk>", 2),
            ("<s>", 3),
            ("</s>", 3),
            ("abc", 1),
            ("ab", 1),
            ("a", 1),
            ("b", 1),
            ("c", 1),
            ("bc", 1),
            ("<u>", 4),
        ];
        let settings = r#"{"add_eos_token": true, "pad_token": "<pad>", "added_tokens_decoder":
            {"10": {"content": "<t>", "special": true, "lstrip": true}}}"#;
        let settings: Map<String, Value> = serde_json::from_str(settings).unwrap();
        let added: Map<String, Value> = serde_json::from_str(r#"{"<pad>": 11, "<plain>": 12}"#).unwrap();
        let json = tokenizer_json(&model(&pieces, BPE, PLAIN), &settings, &added).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["model"]["merges"], json!([["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]));
        let tokens: Vec<(u64, &str, bool)> = json["added_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t["id"].as_u64().unwrap(), t["content"].as_str().unwrap(), t["special"].as_bool().unwrap()))
            .collect();
        let expected = [
            (0, "<unk>", true),
            (1, "<s>", true),
            (2, "</s>", true),
            (9, "<u>", false),
            (10, "<t>", true),
            (11, "<pad>", true),
            (12, "<plain>", false),
        ];
        assert_eq!(tokens, expected);
        let single = &json["post_processor"]["single"];
        assert_eq!(
            (&single[0]["SpecialToken"]["id"], &single[2]["SpecialToken"]["id"]),
            (&json!("<s>"), &json!("</s>"))
        );
    }

    /// The published tokenizer.json files beside these models were made by transformers.
    #[test]
    fn a_converted_model_has_the_vocabulary_and_merges_of_transformers() {
        for dir in
            ["../shared/tokenizers/llama-2", "../shared/tokenizers/tinyllama-1.1b-chat", "../shared/models/stories260K"]
        {
            let dir = Path::new(dir);
            if !dir.join("tokenizer.model").is_file() {
                eprintln!("skipped: {} has no tokenizer.model", dir.display());
                continue;
            }
            let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap() };
            let settings = read("tokenizer_config.json").as_object().unwrap().clone();
            let json = tokenizer_json(&fs::read(dir.join("tokenizer.model")).unwrap(), &settings, &Map::new()).unwrap();
            let (ours, theirs): (Value, Value) = (serde_json::from_str(&json).unwrap(), read("tokenizer.json"));
            for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
                assert_eq!(ours[part], theirs[part], "{part} of {}", dir.display());
            }
            assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"], "{}", dir.display());
            let merge = |merge: &Value| match merge {
                Value::String(text) => text.clone(),
                pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            };
            // Spaces in a row all have one score, and the order among equals has changed over time.
            let spaces = |merge: &String| merge.chars().all(|c| c == ' ' || SPACE.starts_with(c));
            let merges = |json: &Value| {
                let merges = json["model"]["merges"].as_array().unwrap().iter().map(merge);
                merges.filter(|merge| !spaces(merge)).collect::<Vec<_>>()
            };
            let (ours, theirs) = (merges(&ours), merges(&theirs));
            let differ = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!((ours.len(), differ), (theirs.len(), None), "{}", dir.display());
        }
    }
}
