//! SentencePiece's `tokenizer.model` as the `tokenizer.json` that transformers makes of it, for BPE models such as Llama's and Mistral's.
//!
//! The file is a protocol buffer, `ModelProto` of sentencepiece_model.proto. Of it are read the pieces (field 1: text 1, score 2, kind 3),
//! the trainer's settings (field 2) and the normalizer's (field 3).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// What stands for a space in pieces.
const SPACE: &str = "\u{2581}";

/// The value of one field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => 0,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The fields of a message with their numbers, in order; None where the bytes are no message.
fn message(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(taken)
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => Field::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        fields.push((key >> 3, field));
    }
    Some(fields)
}

/// The kinds of a piece that are not of the text.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// The parts of a model that a tokenizer needs.
struct Model {
    pieces: Vec<Piece>,
    /// 1 is unigram, 2 is BPE.
    kind: u64,
    byte_fallback: bool,
    unknown: usize,
    begin: Option<usize>,
    end: Option<usize>,
    adds_space: bool,
    /// True if texts are brought into another unicode form before they are cut. That spaces in a row become one is left out, as
    /// transformers does.
    normalizes: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            kind: 1,
            byte_fallback: false,
            unknown: 0,
            begin: Some(1),
            end: Some(2),
            adds_space: true,
            normalizes: false,
        };
        for (number, field) in message(bytes)? {
            let Field::Bytes(bytes) = field else { continue };
            match number {
                1 => model.pieces.push(piece(bytes)?),
                2 => model.read_trainer(bytes)?,
                3 => {
                    for (number, field) in message(bytes)? {
                        match (number, field) {
                            (2, Field::Bytes(map)) => model.normalizes |= !map.is_empty(),
                            (3, field) => model.adds_space = field.number() != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Option<()> {
        // A negative id, which takes ten bytes, says that there is no such piece.
        let id = |field: &Field<'_>| usize::try_from(field.number()).ok().filter(|id| *id < 1 << 31);
        for (number, field) in message(bytes)? {
            match number {
                3 => self.kind = field.number(),
                35 => self.byte_fallback = field.number() != 0,
                40 => self.unknown = id(&field)?,
                41 => self.begin = id(&field),
                42 => self.end = id(&field),
                _ => {}
            }
        }
        Some(())
    }

    fn text(&self, id: Option<usize>) -> Option<&str> {
        self.pieces.get(id?).map(|piece| piece.text.as_str())
    }
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    for (number, field) in message(bytes)? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Bytes(&[a, b, c, d])) => piece.score = f32::from_le_bytes([a, b, c, d]),
            (3, field) => piece.kind = field.number(),
            _ => {}
        }
    }
    Some(piece)
}

/// The merges that make the pieces out of shorter ones, those of the highest scores first. The ways to make one piece are in the order
/// of the ids of their parts.
fn merges(ids: &HashMap<&str, usize>, pieces: &[Piece]) -> Vec<[String; 2]> {
    let mut merges = Vec::new();
    for piece in pieces {
        let splits = piece.text.char_indices().skip(1).map(|(at, _)| piece.text.split_at(at));
        let known = splits.filter_map(|(left, right)| Some(([*ids.get(left)?, *ids.get(right)?], left, right)));
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
/// A sentence on what the file is instead of a BPE model that can be read.
pub(super) fn tokenizer_json(
    bytes: &[u8],
    settings: &Map<String, Value>,
    added: &Map<String, Value>,
) -> Result<String, String> {
    let model = Model::parse(bytes).ok_or("is no SentencePiece model")?;
    if model.kind != 2 {
        return Err("is a SentencePiece model of another kind than BPE".to_owned());
    }
    if model.normalizes {
        return Err("is a SentencePiece model that changes texts before it cuts them".to_owned());
    }
    let ids: HashMap<&str, usize> = model.pieces.iter().enumerate().map(|(id, p)| (p.text.as_str(), id)).collect();
    let unknown = model.text(Some(model.unknown)).ok_or("names an unknown piece that it does not have")?;
    let vocab: Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), json!(id))).collect();
    let space = || json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let prefix = model.adds_space.then(|| json!({ "type": "Prepend", "prepend": SPACE }));
    let strip = model.adds_space.then(|| json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    let decoders = [
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&model, settings, added),
        "normalizer": { "type": "Sequence", "normalizers": prefix.into_iter().chain([space()]).collect::<Vec<_>>() },
        "pre_tokenizer": null,
        "post_processor": post_processor(&model, &ids, settings),
        "decoder": { "type": "Sequence", "decoders": decoders.into_iter().chain(strip).collect::<Vec<_>>() },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": model.byte_fallback,
            "vocab": vocab,
            "merges": merges(&ids, &model.pieces),
        },
    });
    Ok(json.to_string())
}

/// The tokens that are found in a text before it is cut: those of the model, then those of the settings, which count where both have an
/// id.
fn added_tokens(model: &Model, settings: &Map<String, Value>, added: &Map<String, Value>) -> Vec<Value> {
    let token = |id: u64, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special,
        })
    };
    let mut tokens: std::collections::BTreeMap<u64, Value> = std::collections::BTreeMap::new();
    for (id, piece) in (0..).zip(&model.pieces) {
        if [UNKNOWN, CONTROL, USER_DEFINED].contains(&piece.kind) {
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
        assert!(refused(&model(&pieces, &[3 << 3, 1], PLAIN)).contains("another kind than BPE"));
        let mapped = [PLAIN, &field(2, b"map")].concat();
        assert!(refused(&model(&pieces, BPE, &mapped)).contains("changes texts"));
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
