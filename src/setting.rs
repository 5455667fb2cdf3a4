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
/// PEFT adapters to load, by directory and name.
pub const ADAPTER: Key = Key("adapter");
/// Texts that become tokens.
pub const ADD_TOKENS: Key = Key("add-tokens");
/// Texts that become special tokens.
pub const ADD_SPECIAL_TOKENS: Key = Key("add-special-tokens");
/// Numerator of the LoRA scale.
pub const ALPHA: Key = Key("alpha");
/// Alphas of modules whose names match a pattern.
pub const ALPHA_PATTERN: Key = Key("alpha-pattern");
/// A bias of the factors B.
pub const LORA_BIAS: Key = Key("lora-bias");
/// Modules of which a whole copy is trained.
pub const MODULES_TO_SAVE: Key = Key("modules-to-save");
/// Tokens whose rows of the embedding are trained.
pub const TRAINABLE_TOKEN_INDICES: Key = Key("trainable-token-indices");
/// Slots of a micro-batch.
pub const BATCH_SIZE: Key = Key("batch-size");
/// Chat template that writes conversations as text.
pub const CHAT_TEMPLATE: Key = Key("chat-template");
/// Field with the completion of a prompt.
pub const COMPLETION_FIELD: Key = Key("completion-field");
/// Files or directories with the training data.
pub const DATA: Key = Key("data");
/// Quantization of the 4-bit scales.
pub const DOUBLE_QUANT: Key = Key("double-quant");
/// Float type of the saved weights.
pub const DTYPE: Key = Key("dtype");
/// Passes over the data.
pub const EPOCHS: Key = Key("epochs");
/// Share of the data that is held out for evaluation.
pub const EVAL_FRACTION: Key = Key("eval-fraction");
/// Evaluations without progress after which a run ends.
pub const EARLY_STOPPING_PATIENCE: Key = Key("early-stopping-patience");
/// Data for evaluation.
pub const EVAL_DATA: Key = Key("eval-data");
/// Steps between evaluations.
pub const EVAL_EVERY: Key = Key("eval-every");
/// Linear layers that get no adapter although the target modules include them.
pub const EXCLUDE_MODULES: Key = Key("exclude-modules");
/// Full training from new weights.
pub const FROM_SCRATCH: Key = Key("from-scratch");
/// Limit for a run's device memory.
pub const GPU_MEMORY: Key = Key("gpu-memory");
/// Adapter that training starts from.
pub const INIT_ADAPTER: Key = Key("init-adapter");
/// Numbers of the decoder layers that get adapters.
pub const LAYERS_TO_TRANSFORM: Key = Key("layers-to-transform");
/// Name of the list of layers.
pub const LAYERS_PATTERN: Key = Key("layers-pattern");
/// Choice of the best evaluation's values as the result.
pub const LOAD_BEST_MODEL_AT_END: Key = Key("load-best-model-at-end");
/// Learning rate after the warm-up.
pub const LR: Key = Key("lr");
/// Most tokens of prompt and answer together.
pub const MAX_CONTEXT: Key = Key("max-context");
/// Share of the most likely token's probability that a sampled token has at least.
pub const MIN_P: Key = Key("min-p");
/// Longest training example in tokens.
pub const MAX_SEQ_LEN: Key = Key("max-seq-len");
/// Field with the list of messages.
pub const MESSAGES_FIELD: Key = Key("messages-field");
/// Training method: LoRA, QLoRA or full training.
pub const METHOD: Key = Key("method");
/// Base model, a directory or a name on a hub.
pub const MODEL: Key = Key("model");
/// Treatment of records that cannot be trained on.
pub const ON_BAD: Key = Key("on-bad");
/// Treatment of examples that are too long.
pub const ON_LONG: Key = Key("on-long");
/// Optimizer, with moments in f32 or in 8 bits.
pub const OPTIM: Key = Key("optim");
/// Directory for the results.
pub const OUT: Key = Key("out");
/// Permission to replace results that are there already.
pub const OVERWRITE: Key = Key("overwrite");
/// Text to answer or to continue.
pub const PROMPT: Key = Key("prompt");
/// What a run learns from its data.
pub const OBJECTIVE: Key = Key("objective");
/// Field with the prompt of a completion.
pub const PROMPT_FIELD: Key = Key("prompt-field");
/// 4-bit code of the base.
pub const QUANT: Key = Key("quant");
/// Quantization of embedding and head.
pub const QUANTIZE_EMBEDDING: Key = Key("quantize-embedding");
/// Rank of the LoRA factors.
pub const RANK: Key = Key("rank");
/// Ranks of modules whose names match a pattern.
pub const RANK_PATTERN: Key = Key("rank-pattern");
/// Layers whose activations are computed again in the backward pass.
pub const RECOMPUTE: Key = Key("recompute");
/// Penalty of tokens that the text has already.
pub const REPETITION_PENALTY: Key = Key("repetition-penalty");
/// Continuation of a run from a checkpoint.
pub const RESUME: Key = Key("resume");
/// Steps between checkpoints.
pub const SAVE_EVERY: Key = Key("save-every");
/// Shape of the data's records.
pub const SHAPE: Key = Key("shape");
/// Number of optimizer steps.
pub const STEPS: Key = Key("steps");
/// Linear layers that get adapters.
pub const TARGET_MODULES: Key = Key("target-modules");
/// Divisor of the logits when tokens are sampled.
pub const TEMPERATURE: Key = Key("temperature");
/// File with a teacher's log-probabilities.
pub const TEACHER: Key = Key("teacher");
/// Value of a variable of the chat template.
pub const TEMPLATE_ARG: Key = Key("template-arg");
/// Date and time that the chat template writes.
pub const TEMPLATE_DATE: Key = Key("template-date");
/// Field with the text.
pub const TEXT_FIELD: Key = Key("text-field");
/// Number of a teacher's likeliest tokens for each trained token.
pub const TOP_K: Key = Key("top-k");
/// Probability that the likeliest tokens to sample from reach together.
pub const TOP_P: Key = Key("top-p");
/// Tokens that are in the loss.
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

/// A count with its noun, in the plural where it is not 1: `1 step`, `3 steps`.
pub fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
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
    let plain = !key.is_empty() && key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
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
    fn one_thing_has_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "step")), ["0 steps", "1 step", "2 steps"]);
    }

    #[test]
    fn brackets_of_other_texts_stay() {
        for text in ["⟨x|y⟩ is a product", "⟨", "⟩⟨⟩", "⟨psi", "⟨A=1⟩"] {
            assert_eq!(written(text, as_flag), text);
        }
    }
}
