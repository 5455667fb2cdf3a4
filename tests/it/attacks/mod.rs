//! Generators of damaged and hostile files, each made from a good one by a change that has a name.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A file of the safetensors format, taken apart.
pub struct Weights {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl Weights {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        Self { header, data: bytes[8 + length..].to_vec() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        file(&serde_json::to_string(&self.header).unwrap(), &self.data)
    }

    pub fn offsets(&self, name: &str) -> (usize, usize) {
        let offset = |index: usize| self.header[name]["data_offsets"][index].as_u64().unwrap() as usize;
        (offset(0), offset(1))
    }

    /// Writes one number of an F32 tensor.
    pub fn set(&mut self, name: &str, element: usize, value: f32) {
        assert_eq!(self.header[name]["dtype"], "F32");
        let at = self.offsets(name).0 + 4 * element;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Multiplies every number of an F32 tensor.
    pub fn scale(&mut self, name: &str, factor: f32) {
        let (begin, end) = self.offsets(name);
        for word in self.data[begin..end].chunks_exact_mut(4) {
            let value = f32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            word.copy_from_slice(&(value * factor).to_le_bytes());
        }
    }
}

/// The bytes of a safetensors file with this header, true or not.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// What was done to a file, its bytes afterwards, and what the refusal must say.
pub struct Attack {
    pub what: &'static str,
    pub bytes: Vec<u8>,
    pub says: &'static [&'static str],
}

/// A tensor of every fixture that is neither first nor last in its file.
pub const VICTIM: &str = "model.layers.0.self_attn.k_proj.weight";
const NEIGHBOR: &str = "model.layers.0.self_attn.v_proj.weight";

/// Damage to the file of a whole model whose [`VICTIM`] is F32 and as large as its neighbor.
pub fn on_weights(path: &Path) -> Vec<Attack> {
    let good = std::fs::read(path).unwrap();
    let header_len = good.len() - Weights::read(path).data.len() - 8;
    let mut attacks = Vec::new();
    let mut attack = |what, says, bytes| attacks.push(Attack { what, bytes, says });
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();

    attack("an empty file", &["cut short"], Vec::new());
    attack("half a file", &["cut short"], good[..good.len() / 2].to_vec());
    attack("half a header", &["cut short"], good[..8 + header_len / 2].to_vec());
    attack("the last byte gone", &["cut short"], good[..good.len() - 1].to_vec());
    attack("bytes after the end", &["7 bytes after its last tensor"], [&good[..], &[0; 7]].concat());
    attack("a header longer than any", &["above the limit"], with_length(u64::MAX));
    attack("a header of 99 MB", &["cut short"], with_length(99_000_000));
    attack("a header of no bytes", &["is not valid JSON"], with_length(0));
    attack("a page of HTML", &["above the limit"], b"<!DOCTYPE html><html>not found</html>".to_vec());
    attack("a header in another encoding", &["not UTF-8"], [&8u64.to_le_bytes()[..], &[0xff; 8]].concat());
    attack("a list as the header", &["one JSON object"], file("[]", &[]));
    attack("brackets without end", &["is not valid JSON"], file(&"[".repeat(100_000), &[]));

    let mut change = |what, says, change: &dyn Fn(&mut Weights)| {
        let mut weights = Weights::read(path);
        change(&mut weights);
        attack(what, says, weights.bytes());
    };
    let place = |key: &'static str, value: Value| move |w: &mut Weights| w.header[VICTIM][key] = value.clone();
    change("a tensor upon its neighbor", &["overlaps"], &|w| {
        w.header[NEIGHBOR]["data_offsets"] = w.header[VICTIM]["data_offsets"].clone();
    });
    change("a hole before a tensor", &["leaves 4 unused bytes"], &|w| {
        let (begin, end) = w.offsets("model.norm.weight");
        w.header["model.norm.weight"]["data_offsets"] = json!([begin + 4, end + 4]);
        w.data.extend([0; 4]);
    });
    change("offsets past the end", &[VICTIM, "data_offsets"], &place("data_offsets", json!([0, u64::MAX])));
    change("offsets the wrong way round", &[VICTIM, "data_offsets"], &place("data_offsets", json!([2048, 0])));
    change("offsets below zero", &[VICTIM, "has no data_offsets"], &place("data_offsets", json!([-4, 0])));
    change("one offset", &[VICTIM, "has no data_offsets"], &place("data_offsets", json!([0])));
    change("a type of another size", &[VICTIM, "F64", "bytes"], &place("dtype", json!("F64")));
    change("a type that is no float", &[VICTIM, "type I32; supported are F32"], &place("dtype", json!("I32")));
    change("a type that nobody knows", &[VICTIM, "unknown dtype `Q9`"], &place("dtype", json!("Q9")));
    change("no type", &[VICTIM, "has no dtype"], &place("dtype", Value::Null));
    change("no shape", &[VICTIM, "has no shape"], &place("shape", Value::Null));
    change("a shape of another size", &[VICTIM, "bytes"], &place("shape", json!([16, 33])));
    change("a shape that overflows", &[VICTIM, "has the shape"], &place("shape", json!([u64::MAX, 2, 2])));
    change("a shape that is turned", &[VICTIM, "config.json asks for [16, 32]"], &place("shape", json!([32, 16])));
    change("a tensor under another name", &[VICTIM, "is missing"], &|w| {
        let tensor = w.header.remove(VICTIM).unwrap();
        w.header.insert("model.other".to_owned(), tensor);
    });
    change("NaN in a matrix", &[VICTIM, "not finite (element 5)"], &|w| w.set(VICTIM, 5, f32::NAN));
    change("infinity in a norm", &["model.norm.weight", "not finite (element 3)"], &|w| {
        w.set("model.norm.weight", 3, f32::NEG_INFINITY);
    });
    attacks
}

/// A tokenizer of `words` words, `w0`, `w1` and so on, of which the first two begin and end a text.
pub fn tokenizer(words: usize) -> String {
    let vocabulary: Map<String, Value> = (0..words).map(|i| (format!("w{i}"), json!(i))).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "truncation": null, "padding": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    })
    .to_string()
}
