//! Models of several modalities whose text decoder is one of the supported families: the decoder is trained and used, the other parts
//! are passed over.

use std::path::Path;

use serde_json::{Map, Value};

use super::modules::{self, HEAD};
use crate::{Error, Result};

/// One class of models with a text decoder inside.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrapper {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The decoder's place among the modules of transformers, which PEFT's tensor names follow.
    pub decoder: &'static str,
    /// The family of the decoder where `config.json` has no `text_config`; None if it must have one.
    flat: Option<&'static str>,
}

const fn with_text_config(model_type: &'static str, decoder: &'static str) -> Wrapper {
    Wrapper { model_type, decoder, flat: None }
}

/// Every supported class. Text alone goes through their decoders as through the text model: rotary positions of several axes are then
/// equal, and attention stays causal.
static WRAPPERS: [Wrapper; 14] = [
    with_text_config("gemma3", "model.language_model"),
    with_text_config("gemma4", "model.language_model"),
    with_text_config("mistral3", "model.language_model"),
    with_text_config("llava", "model.language_model"),
    with_text_config("llava_next", "model.language_model"),
    with_text_config("llava_onevision", "model.language_model"),
    with_text_config("internvl", "model.language_model"),
    with_text_config("qwen3_vl", "model.language_model"),
    with_text_config("qwen3_5", "model.language_model"),
    with_text_config("idefics3", "model.text_model"),
    with_text_config("smolvlm", "model.text_model"),
    with_text_config("lfm2_vl", "model.language_model"),
    Wrapper { model_type: "qwen2_vl", decoder: "model.language_model", flat: Some("qwen2") },
    Wrapper { model_type: "qwen2_5_vl", decoder: "model.language_model", flat: Some("qwen2") },
];

/// The decoder's place in files, in the order in which they are looked for.
const PLACES: [&str; 3] = ["model.language_model.", "language_model.model.", "model.text_model."];

/// Names that `text_config` gives to families which transformers also knows as text models of their own.
const TEXT_TYPES: [(&str, &str); 3] =
    [("qwen2_vl_text", "qwen2"), ("qwen2_5_vl_text", "qwen2"), ("qwen3_vl_text", "qwen3")];

/// Sizes that the configuration classes of transformers fill in: `text_config` of published files leaves them out.
const SIZES: [&str; 7] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
];
const DEFAULTS: [(&str, [u64; 7]); 7] = [
    ("gemma3_text", [262_208, 2304, 9216, 26, 8, 4, 256]),
    ("gemma4_text", [262_144, 2304, 9216, 30, 8, 4, 256]),
    ("ministral3", [131_072, 4096, 14336, 34, 32, 8, 128]),
    ("mistral", [32_000, 4096, 14336, 32, 32, 8, 0]),
    ("llama", [32_000, 4096, 11008, 32, 32, 0, 0]),
    ("qwen3_5_text", [248_320, 4096, 12288, 32, 16, 4, 256]),
    ("qwen2", [151_936, 4096, 22016, 32, 32, 32, 0]),
];

/// Keys of the whole model that speak of the decoder too.
const SHARED: [&str; 4] = ["bos_token_id", "eos_token_id", "quantization_config", "tie_word_embeddings"];

/// The decoder's configuration in that of a whole model, as if it were a text model's.
pub(super) struct Unwrapped {
    pub wrapper: &'static Wrapper,
    /// The prefix of the decoder's keys in messages.
    pub prefix: &'static str,
    pub fields: Map<String, Value>,
}

/// Takes the decoder's configuration out of a whole model's; None for a text model.
///
/// # Errors
/// A supported class of models without the decoder's part.
pub(super) fn unwrap(path: &Path, config: &Map<String, Value>) -> Result<Option<Unwrapped>> {
    let kind = config.get("model_type").and_then(Value::as_str);
    let Some(wrapper) = WRAPPERS.iter().find(|wrapper| Some(wrapper.model_type) == kind) else { return Ok(None) };
    let (prefix, mut fields) = match (config.get("text_config"), wrapper.flat) {
        (Some(Value::Object(text)), _) => ("text_config.", text.clone()),
        (None, Some(_)) => ("", config.clone()),
        _ => {
            return Err(Error::field(
                path,
                "text_config",
                "is missing; it must hold the configuration of the text decoder",
            ));
        }
    };
    let inner = fields.get("model_type").and_then(Value::as_str).filter(|_| !prefix.is_empty()).or(wrapper.flat);
    // LLaVA's configuration without a type is Llama's.
    let inner = inner.unwrap_or("llama").to_owned();
    let family = TEXT_TYPES.iter().find(|(name, _)| *name == inner).map_or(inner.as_str(), |(_, family)| *family);
    fields.insert("model_type".to_owned(), family.into());
    fields.remove("architectures");
    if let Some((_, sizes)) = DEFAULTS.iter().find(|(name, _)| *name == family) {
        for (key, size) in SIZES.iter().zip(sizes).filter(|(_, size)| **size > 0) {
            fields.entry(*key).or_insert_with(|| (*size).into());
        }
    }
    for key in SHARED {
        if let Some(value) = config.get(key) {
            fields.insert(key.to_owned(), value.clone());
        }
    }
    // The files decide: one with a head of its own is read so, one without has none.
    fields.entry("tie_word_embeddings").or_insert(Value::Bool(true));
    plain_rope(&mut fields);
    Ok(Some(Unwrapped { wrapper, prefix, fields }))
}

/// Text has equal positions on all axes of `mrope`, which is then the plain embedding.
fn plain_rope(fields: &mut Map<String, Value>) {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = fields.get_mut(key).and_then(Value::as_object_mut) else { continue };
        for kind in ["type", "rope_type"] {
            if rope.get(kind).and_then(Value::as_str) == Some("mrope") {
                rope.insert(kind.to_owned(), "default".into());
            }
        }
    }
}

/// The supported classes as a part of a sentence.
pub(super) fn supported() -> String {
    let names: Vec<&str> = WRAPPERS.iter().map(|wrapper| wrapper.model_type).collect();
    format!("and the text part of {}", names.join(", "))
}

/// The name that a tensor of the decoder has in a text model, from its name in the files of a whole model; None for a tensor of another
/// part.
pub fn text_name(name: &str) -> Option<String> {
    let below = PLACES.iter().find_map(|place| name.strip_prefix(place));
    if let Some(below) = below {
        return Some(format!("{}.{below}", modules::MODEL));
    }
    let head = name.strip_prefix("language_model.")?;
    head.starts_with(HEAD).then(|| head.to_owned())
}

/// The name of a module or tensor of the text model in a model whose decoder lies at `decoder`.
pub fn in_decoder(decoder: &str, name: &str) -> String {
    match name.strip_prefix(modules::MODEL) {
        Some(below) if below.is_empty() || below.starts_with('.') => format!("{decoder}{below}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Unwrapped {
        let Ok(Value::Object(config)) = serde_json::from_str(text) else { unreachable!("{text}") };
        unwrap(Path::new("config.json"), &config).unwrap().unwrap()
    }

    #[test]
    fn the_decoder_is_read_as_a_text_model() {
        // As gemma-3-4b-it is published: most sizes are those of the class.
        let found = fields(
            r#"{"model_type": "gemma3", "eos_token_id": [1, 106], "architectures": ["Gemma3ForConditionalGeneration"], "text_config":
            {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}}"#,
        );
        assert_eq!((found.wrapper.decoder, found.prefix), ("model.language_model", "text_config."));
        let number = |key: &str| found.fields[key].as_u64();
        assert_eq!(
            (number("hidden_size"), number("num_attention_heads"), number("head_dim")),
            (Some(2560), Some(8), Some(256))
        );
        assert_eq!(found.fields["eos_token_id"].as_array().map(Vec::len), Some(2));
        assert!(!found.fields.contains_key("architectures"));

        let flat = fields(
            r#"{"model_type": "qwen2_5_vl", "hidden_size": 64, "rope_scaling": {"type": "mrope", "mrope_section": [2]}}"#,
        );
        assert_eq!((flat.prefix, flat.fields["model_type"].as_str()), ("", Some("qwen2")));
        assert_eq!(flat.fields["rope_scaling"]["type"], "default");
        let renamed = fields(r#"{"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}}"#);
        assert_eq!(renamed.fields["model_type"], "qwen3");
    }

    #[test]
    fn names_go_to_the_text_model_and_back() {
        for (name, expected) in [
            ("language_model.model.layers.1.mlp.up_proj.weight", Some("model.layers.1.mlp.up_proj.weight")),
            ("model.language_model.embed_tokens.weight", Some("model.embed_tokens.weight")),
            ("model.text_model.norm.weight", Some("model.norm.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("lm_head.weight", None),
            ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", None),
            ("model.layers.0.mlp.up_proj.weight", None),
        ] {
            assert_eq!(text_name(name).as_deref(), expected, "{name}");
        }
        assert_eq!(in_decoder("model.language_model", "model.layers.0"), "model.language_model.layers.0");
        assert_eq!(in_decoder("model.language_model", "lm_head"), "lm_head");
        assert_eq!(in_decoder("model", "model.norm"), "model.norm");
    }
}
