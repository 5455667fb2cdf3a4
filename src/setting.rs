//! Names of settings inside messages.
//!
//! The library names a setting by its key in settings files, in kebab-case: `batch-size`. A terminal has a flag for it, a page a
//! control with a label. So messages hold placeholders, `⟨batch-size⟩` or with a value `⟨method=qlora⟩`, and the program that shows a
//! message replaces them by [`written`].

use std::fmt;

/// A setting, by its key in a settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub &'static str);

// The settings that messages outside of `train::settings` name.
pub const ADAPTER: Key = Key("adapter");
pub const ALPHA: Key = Key("alpha");
pub const BATCH_SIZE: Key = Key("batch-size");
pub const CHAT_TEMPLATE: Key = Key("chat-template");
pub const DATA: Key = Key("data");
pub const DOUBLE_QUANT: Key = Key("double-quant");
pub const DTYPE: Key = Key("dtype");
pub const EVAL_FRACTION: Key = Key("eval-fraction");
pub const EXCLUDE_MODULES: Key = Key("exclude-modules");
pub const FROM_SCRATCH: Key = Key("from-scratch");
pub const GPU_MEMORY: Key = Key("gpu-memory");
pub const INIT_ADAPTER: Key = Key("init-adapter");
pub const LAYERS_TO_TRANSFORM: Key = Key("layers-to-transform");
pub const LR: Key = Key("lr");
pub const MAX_CONTEXT: Key = Key("max-context");
pub const MAX_SEQ_LEN: Key = Key("max-seq-len");
pub const METHOD: Key = Key("method");
pub const MODEL: Key = Key("model");
pub const ON_LONG: Key = Key("on-long");
pub const OPTIM: Key = Key("optim");
pub const OUT: Key = Key("out");
pub const OVERWRITE: Key = Key("overwrite");
pub const PROMPT: Key = Key("prompt");
pub const QUANT: Key = Key("quant");
pub const QUANTIZE_EMBEDDING: Key = Key("quantize-embedding");
pub const RANK: Key = Key("rank");
pub const RECOMPUTE: Key = Key("recompute");
pub const REPETITION_PENALTY: Key = Key("repetition-penalty");
pub const RESUME: Key = Key("resume");
pub const SHAPE: Key = Key("shape");
pub const TARGET_MODULES: Key = Key("target-modules");
pub const TEMPERATURE: Key = Key("temperature");
pub const TOP_P: Key = Key("top-p");
pub const TRAIN_ON: Key = Key("train-on");

impl Key {
    /// The placeholder of this setting with a value. The value must not hold a `⟩`.
    pub fn is(self, value: impl fmt::Display) -> String {
        format!("⟨{}={value}⟩", self.0)
    }
}

/// The placeholder of this setting.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "⟨{}⟩", self.0)
    }
}

/// Replaces every placeholder in `text` by the result of `write` for its key and value.
pub fn written(text: &str, write: impl Fn(&str, Option<&str>) -> String) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('⟨') {
        shown.push_str(before);
        rest = after;
        match placeholder(after) {
            Some((key, value, left)) => {
                shown.push_str(&write(key, value));
                rest = left;
            }
            // A bracket that is part of a quoted text.
            None => shown.push('⟨'),
        }
    }
    shown + rest
}

/// Parses a placeholder after its opening bracket and returns its key, its value and the rest of `text`.
fn placeholder(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let (inner, rest) = text.split_once('⟩')?;
    let (key, value) = match inner.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (inner, None),
    };
    let plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    plain.then_some((key, value, rest))
}

/// Writes a setting for a command line: `--key value`, or `--key` and `--no-key` for true and false.
pub fn as_flag(key: &str, value: Option<&str>) -> String {
    match value {
        None | Some("true") => format!("--{key}"),
        Some("false") => format!("--no-{key}"),
        Some(value) => format!("--{key} {value}"),
    }
}

/// Writes a setting for a settings file: `key`, or `key = value`.
pub fn as_toml(key: &str, value: Option<&str>) -> String {
    let plain = |value: &str| value.parse::<f64>().is_ok() || matches!(value, "true" | "false");
    match value {
        None => format!("`{key}`"),
        Some(value) if plain(value) => format!("`{key} = {value}`"),
        Some(value) => format!("`{key} = \"{value}\"`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_front_end_writes_a_setting_its_own_way() {
        let four_bits = [QUANT.is("nf4"), DOUBLE_QUANT.is(false)].join(" ");
        let text = format!("lower {BATCH_SIZE} or take {four_bits}");
        assert_eq!(written(&text, as_flag), "lower --batch-size or take --quant nf4 --no-double-quant");
        assert_eq!(written(&text, as_toml), "lower `batch-size` or take `quant = \"nf4\"` `double-quant = false`");
        assert_eq!(written(&LR.is(0.1), as_toml), "`lr = 0.1`");
    }

    #[test]
    fn brackets_of_other_texts_stay() {
        for text in ["⟨x|y⟩ is a product", "⟨", "⟩⟨⟩", "⟨psi", "⟨A=1⟩"] {
            assert_eq!(written(text, as_flag), text);
        }
    }
}
