//! The settings of a run: the command line, a TOML file and a page are views of this one struct.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::objective::Objective;
use super::preference::{Preference, PreferenceLoss};
use super::schedule::{Decay, DecayType, Schedule};
use super::setting_spec::{OnResume, Range, Setting};
use crate::data::settings::{DataSettings, DataSources, OnLong};
use crate::hub::base_name;
use crate::lora::config::{Bias, ExcludeModules, LoraConfig, LoraInit, Patterns, TargetModules, init_or_true};
use crate::model::modules::last_part;
use crate::network::base::BaseStorage;
use crate::network::moments::MomentStorage;
use crate::ops::adamw::AdamW;
use crate::ops::distillation::Distillation;
use crate::quant::format::{Code4, Float};
use crate::setting::{
    ADD_SPECIAL_TOKENS, ADD_TOKENS, BATCH_SIZE, DTYPE, EARLY_STOPPING_PATIENCE, EVAL_EVERY, FROM_SCRATCH, INIT_ADAPTER,
    Key, LAYERS_PATTERN, LOAD_BEST_MODEL_AT_END, METHOD, MODULES_TO_SAVE, OBJECTIVE, ON_LONG, QUANT,
    QUANTIZE_EMBEDDING, TEACHER,
};
use crate::{Error, Result};

/// The objective: what a run learns from its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveChoice {
    /// The answers themselves.
    #[default]
    Sft,
    /// To prefer chosen answers to rejected ones, measured against the model before training.
    Dpo,
    /// As DPO, with a bounded preference.
    Ipo,
    /// DPO together with the chosen answers themselves.
    Rpo,
    /// The chosen answers, and to prefer them to rejected ones, without a reference.
    Orpo,
    /// To prefer chosen answers to rejected ones by a margin, without a reference.
    Simpo,
    /// Answers that are labeled good or bad one by one.
    Kto,
    /// The likeliest tokens of a teacher, from a file of their log-probabilities.
    Distill,
}

/// Method of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The base in 4 bits.
    Qlora,
    /// The base as its files hold it.
    Lora,
    /// No adapter: every tensor of the model itself, in f32.
    Full,
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Optim {
    /// AdamW with its moments in 32-bit floats.
    #[serde(alias = "adamw_torch", alias = "adamw_torch_fused", alias = "adamw_hf")]
    #[cfg_attr(feature = "cli", value(aliases = ["adamw_torch", "adamw_torch_fused", "adamw_hf"]))]
    Adamw,
    /// AdamW with its moments in 8 bits.
    #[serde(alias = "adamw_8bit", alias = "adamw_bnb_8bit", alias = "paged_adamw_8bit")]
    #[cfg_attr(feature = "cli", value(name = "adamw8bit", aliases = ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"]))]
    Adamw8bit,
    /// Lion, with one momentum in 32-bit floats.
    #[serde(alias = "lion_32bit", alias = "paged_lion_32bit")]
    #[cfg_attr(feature = "cli", value(aliases = ["lion_32bit", "paged_lion_32bit"]))]
    Lion,
}

impl Optim {
    /// Storage of the optimizer's moments.
    pub fn moments(self) -> MomentStorage {
        match self {
            Self::Adamw => MomentStorage::F32,
            Self::Adamw8bit => MomentStorage::EightBit,
            Self::Lion => MomentStorage::Momentum,
        }
    }
}

/// The layers that keep their activations for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RecomputeChoice {
    /// Keep the activations of as many layers as fit into a budget.
    Auto,
    /// Keep everything.
    None,
    /// Keep each layer's input alone.
    All,
}

/// The type of the activations that are kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum ActivationsChoice {
    /// In f32, unless only bf16 fits into the budget.
    Auto,
    /// As they are computed, 4 bytes a value.
    F32,
    /// Rounded to bf16, 2 bytes a value; computation stays in f32.
    Bf16,
}

/// Every setting of a run, under its key in `run.toml`. [`SETTINGS`] has the values that each may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct RunSettings {
    /// Directory of the base model.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub model: PathBuf,
    /// Data to train on, read together: files, directories with a training split, or one split as `DIR:SPLIT`.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string | string[]"))]
    pub data: DataSources,
    /// Directory for the results.
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub out: PathBuf,
    /// Method of training.
    pub method: Method,
    /// What the run learns from its data.
    #[serde(skip_serializing_if = "is_default")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub objective: ObjectiveChoice,
    /// How strictly a preference objective holds the model to its reference, above 0; None is 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub beta: Option<f64>,
    /// Share of the pairs that are taken to be the wrong way round, for DPO, RPO and SimPO; None is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub label_smoothing: Option<f64>,
    /// Weight of the cross-entropy of the chosen answers in RPO; None is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub rpo_alpha: Option<f64>,
    /// Margin of SimPO; None is 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub simpo_gamma: Option<f64>,
    /// Weight of good answers in KTO; None is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub desirable_weight: Option<f64>,
    /// Weight of bad answers in KTO; None is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub undesirable_weight: Option<f64>,
    /// File with a teacher's log-probabilities, for distillation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "string"))]
    pub teacher: Option<PathBuf>,
    /// Divisor of the logits of teacher and student in distillation, above 0; None is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub temperature: Option<f64>,
    /// Share of the cross-entropy with the labels in distillation, from 0 to below 1; None is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub hard_label_share: Option<f64>,
    /// 4-bit code of the base under QLoRA.
    pub quant: Code4,
    /// True to keep the packed blocks of a GGUF base as they are, in place of `quant`.
    #[serde(default)]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub keep_blocks: bool,
    /// True to quantize the scales of the 4-bit base too.
    pub double_quant: bool,
    /// Embedding and head in 4 bits too, where the base is.
    pub quantize_embedding: bool,
    /// Rank of the LoRA factors, at least 1.
    pub rank: usize,
    /// Numerator of the LoRA scale, above 0.
    pub alpha: f64,
    /// Probability that an element of A's input becomes 0 in training, from 0 to below 1.
    pub dropout: f64,
    /// Learning rate of the factors B as a multiple of that of A (Hayou et al. 2024, LoRA+); None is the same for both.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub loraplus_lr_ratio: Option<f64>,
    /// `all-linear`, names separated by commas, or a regular expression.
    pub target_modules: String,
    /// True to scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023, rsLoRA).
    pub rslora: bool,
    /// True to train a magnitude of each output beside the factors (Liu et al. 2024, DoRA).
    pub use_dora: bool,
    /// Ranks by pattern: a module whose name ends in a match has that rank. The first match counts.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "Record<string, number>"))]
    pub rank_pattern: Patterns<usize>,
    /// Alphas by pattern.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "Record<string, number>"))]
    pub alpha_pattern: Patterns<f64>,
    /// The layers that get an adapter; None is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub layers_to_transform: Option<Vec<usize>>,
    /// The name of the list of layers; these models have one, `layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub layers_pattern: Option<String>,
    /// Names separated by commas, or a regular expression, of modules that get no adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub exclude_modules: Option<String>,
    /// `embed_tokens`, `lm_head` or both, separated by commas: a whole copy of each is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub modules_to_save: Option<String>,
    /// Tokens whose rows of the embedding are trained, and of a tied head.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub trainable_token_indices: Option<Vec<u32>>,
    /// Texts that become tokens of their own, whose rows of embedding and head are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub add_tokens: Option<Vec<String>>,
    /// As `add_tokens`, for special tokens, such as those that begin and end turns. Answers do not show them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub add_special_tokens: Option<Vec<String>>,
    /// Biases of linear layers that are trained.
    pub bias: Bias,
    /// True to train a bias of each factor B.
    pub lora_bias: bool,
    /// Initial values of a new adapter's A.
    #[serde(deserialize_with = "init_or_true")]
    pub init_lora_weights: LoraInit,
    /// Directory of a PEFT adapter to start from; its rank and alpha replace those given here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "string"))]
    pub init_adapter: Option<PathBuf>,
    /// Slots of a micro-batch: examples, or packed groups of them.
    pub batch_size: usize,
    /// Micro-batches whose gradients are added up for one optimizer step.
    pub grad_accum: usize,
    /// Devices that share the micro-batches of an optimizer step, which has `grad_accum` of each. None is one device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub world_size: Option<usize>,
    /// Longest example in tokens; `None` is 512, or what the model has if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    /// Optimizer steps of the run; `None` leaves it to `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Passes over the data where `steps` is absent; 1 where both are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// The optimizer.
    pub optim: Optim,
    /// Decay of AdamW's first moment, from 0 to below 1.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment, from 0 to below 1.
    pub adam_beta2: f64,
    /// The constant that AdamW adds to the square root of the second moment, above 0.
    pub adam_eps: f64,
    /// Learning rate after the warm-up, above 0.
    pub lr: f64,
    /// Decay of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Times that `cosine-with-restarts` decays; None is once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub num_cycles: Option<usize>,
    /// The learning rate at the end of `cosine`, `warmup-stable-decay` and `polynomial`, as a share of its peak. None is 0, and for
    /// `polynomial` a learning rate of 1e-7, as in transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub min_lr_ratio: Option<f64>,
    /// Steps of the decay of `warmup-stable-decay`; None is a tenth of all steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub num_decay_steps: Option<usize>,
    /// Form of the decay of `warmup-stable-decay`; None is a cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub decay_type: Option<DecayType>,
    /// Exponent of `polynomial`; None is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub power: Option<f64>,
    /// Steps by which `inverse-sqrt` is stretched; None is those of the warm-up, or 10000 without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub timescale: Option<usize>,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// Share of all steps that warms up, in place of `warmup_steps`, which it sets when a run is prepared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay of AdamW; 0 is off.
    pub weight_decay: f64,
    /// Norm to which larger gradients are scaled down; 0 is off.
    pub max_grad_norm: f64,
    /// Strength of uniform noise on the embeddings in training (Jain et al. 2023, NEFTune); None is no noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub neftune_noise_alpha: Option<f64>,
    /// Seed of the order of the data and of its held-out part, of new factors, of dropout and of noise.
    pub seed: u64,
    /// True to draw a new order of the examples for each epoch.
    pub shuffle: bool,
    /// Data to evaluate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "string"))]
    pub eval_data: Option<PathBuf>,
    /// Share of the data held out for evaluation where there is no `eval_data`. None holds out 5 % and at most 64 examples, and nothing
    /// of fewer than 20 examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub eval_fraction: Option<f64>,
    /// Steps between evaluations; 0 evaluates at the end alone.
    pub eval_every: usize,
    /// The run ends after so many evaluations in a row that are no better than the best one; None goes on to the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional))]
    pub early_stopping_patience: Option<usize>,
    /// A lower loss than the best counts as better if it is lower by more than this.
    pub early_stopping_threshold: f64,
    /// What the run leaves is of the step with the best evaluation, not of the last step. Early stopping does so too.
    pub load_best_model_at_end: bool,
    /// Steps between checkpoints; 0 saves by `save_minutes` alone.
    pub save_every: usize,
    /// Minutes between checkpoints; 0 saves by `save_every` alone.
    pub save_minutes: f64,
    /// Checkpoints that stay; the oldest go first.
    pub keep: usize,
    /// Steps between lines of the log, at least 1.
    pub log_every: usize,
    /// Layers that keep their activations for the backward pass.
    pub recompute: RecomputeChoice,
    /// Type of the activations that are kept.
    pub activations: ActivationsChoice,
    /// True to write TensorBoard event files beside the metrics.
    pub tensorboard: bool,
    /// Full training from new weights: the model directory needs no weights.
    pub from_scratch: bool,
    /// Type of the weights that full training saves; without it the one that the base has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Float>,
    /// Limit for the device memory of the run, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Settings that turn the data's files into examples. Its `max_seq_len` is the run's.
    pub data_format: DataSettings,
}

/// Every setting once, in the order of [`RunSettings`]: the values that it may have, and whether a run may go on with another.
pub const SETTINGS: &[Setting<RunSettings>] = &[
    Setting::new("model", OnResume::Free),
    Setting::new("data", OnResume::Free),
    Setting::new("out", OnResume::Free),
    Setting::new("method", OnResume::Fixed),
    Setting::new("objective", OnResume::Fixed),
    Setting::new("beta", OnResume::Fixed).number(Range::Positive, |s| s.beta),
    Setting::new("label-smoothing", OnResume::Fixed).number(Range::Share, |s| s.label_smoothing),
    Setting::new("rpo-alpha", OnResume::Fixed).number(Range::NotNegative, |s| s.rpo_alpha),
    Setting::new("simpo-gamma", OnResume::Fixed).number(Range::NotNegative, |s| s.simpo_gamma),
    Setting::new("desirable-weight", OnResume::Fixed).number(Range::NotNegative, |s| s.desirable_weight),
    Setting::new("undesirable-weight", OnResume::Fixed).number(Range::NotNegative, |s| s.undesirable_weight),
    // The same log-probabilities are found by their fingerprint.
    Setting::new("teacher", OnResume::Free),
    Setting::new("temperature", OnResume::Fixed).number(Range::Positive, |s| s.temperature),
    Setting::new("hard-label-share", OnResume::Fixed).number(Range::Share, |s| s.hard_label_share),
    Setting::new("quant", OnResume::Fixed),
    Setting::new("keep-blocks", OnResume::Fixed),
    Setting::new("double-quant", OnResume::Fixed),
    Setting::new("quantize-embedding", OnResume::Fixed),
    Setting::new("rank", OnResume::Free).count(1, |s| Some(s.rank as u64)),
    Setting::new("alpha", OnResume::Fixed).number(Range::Positive, |s| Some(s.alpha)),
    Setting::new("dropout", OnResume::Fixed).number(Range::Share, |s| Some(s.dropout)),
    Setting::new("loraplus-lr-ratio", OnResume::Steering).number(Range::Positive, |s| s.loraplus_lr_ratio),
    Setting::new("target-modules", OnResume::Free),
    Setting::new("rslora", OnResume::Fixed),
    Setting::new("use-dora", OnResume::Fixed),
    Setting::new("rank-pattern", OnResume::Free),
    Setting::new("alpha-pattern", OnResume::Fixed),
    Setting::new("layers-to-transform", OnResume::Free),
    Setting::new("layers-pattern", OnResume::Free),
    Setting::new("exclude-modules", OnResume::Free),
    Setting::new("modules-to-save", OnResume::Free),
    Setting::new("trainable-token-indices", OnResume::Free),
    Setting::new("add-tokens", OnResume::Fixed),
    Setting::new("add-special-tokens", OnResume::Fixed),
    Setting::new("bias", OnResume::Free),
    Setting::new("lora-bias", OnResume::Free),
    Setting::new("init-lora-weights", OnResume::Free),
    Setting::new("init-adapter", OnResume::Free),
    Setting::new("batch-size", OnResume::Fixed).count(1, |s| Some(s.batch_size as u64)),
    Setting::new("grad-accum", OnResume::Fixed).count(1, |s| Some(s.grad_accum as u64)),
    Setting::new("world-size", OnResume::Fixed).count(1, |s| s.world_size.map(|size| size as u64)),
    // A token and the one that it predicts.
    Setting::new("max-seq-len", OnResume::Free).count(2, |s| s.max_seq_len.map(|n| n as u64)),
    Setting::new("steps", OnResume::Free).count(1, |s| s.steps.map(|n| n as u64)),
    Setting::new("epochs", OnResume::Free).number(Range::Positive, |s| s.epochs),
    Setting::new("optim", OnResume::Fixed),
    Setting::new("adam-beta1", OnResume::Steering).number(Range::Share, |s| Some(s.adam_beta1)),
    Setting::new("adam-beta2", OnResume::Steering).number(Range::Share, |s| Some(s.adam_beta2)),
    Setting::new("adam-eps", OnResume::Steering).number(Range::Positive, |s| Some(s.adam_eps)),
    Setting::new("lr", OnResume::Steering).number(Range::Positive, |s| Some(s.lr)),
    Setting::new("schedule", OnResume::Steering),
    Setting::new("num-cycles", OnResume::Steering).count(1, |s| s.num_cycles.map(|n| n as u64)),
    Setting::new("min-lr-ratio", OnResume::Steering).number(Range::Share, |s| s.min_lr_ratio),
    Setting::new("num-decay-steps", OnResume::Steering).count(1, |s| s.num_decay_steps.map(|n| n as u64)),
    Setting::new("decay-type", OnResume::Steering),
    Setting::new("power", OnResume::Steering).number(Range::Positive, |s| s.power),
    Setting::new("timescale", OnResume::Steering).count(1, |s| s.timescale.map(|n| n as u64)),
    Setting::new("warmup-steps", OnResume::Steering).count(0, |s| Some(s.warmup_steps as u64)),
    // A run steers by the steps that follow from it.
    Setting::new("warmup-ratio", OnResume::Free).number(Range::Share, |s| s.warmup_ratio),
    Setting::new("weight-decay", OnResume::Steering).number(Range::NotNegative, |s| Some(s.weight_decay)),
    Setting::new("max-grad-norm", OnResume::Steering).number(Range::NotNegative, |s| Some(s.max_grad_norm)),
    Setting::new("neftune-noise-alpha", OnResume::Steering).number(Range::NotNegative, |s| s.neftune_noise_alpha),
    Setting::new("seed", OnResume::Fixed).count(0, |s| Some(s.seed)),
    Setting::new("shuffle", OnResume::Fixed),
    Setting::new("eval-data", OnResume::Free),
    Setting::new("eval-fraction", OnResume::Free).number(Range::Share, |s| s.eval_fraction),
    Setting::new("eval-every", OnResume::Free).count(0, |s| Some(s.eval_every as u64)),
    Setting::new("early-stopping-patience", OnResume::Free).count(1, |s| s.early_stopping_patience.map(|n| n as u64)),
    Setting::new("early-stopping-threshold", OnResume::Free)
        .number(Range::NotNegative, |s| Some(s.early_stopping_threshold)),
    Setting::new("load-best-model-at-end", OnResume::Free),
    Setting::new("save-every", OnResume::Free).count(0, |s| Some(s.save_every as u64)),
    Setting::new("save-minutes", OnResume::Free).number(Range::NotNegative, |s| Some(s.save_minutes)),
    Setting::new("keep", OnResume::Free).count(0, |s| Some(s.keep as u64)),
    Setting::new("log-every", OnResume::Free).count(1, |s| Some(s.log_every as u64)),
    Setting::new("recompute", OnResume::Free),
    Setting::new("activations", OnResume::Fixed),
    Setting::new("tensorboard", OnResume::Free),
    Setting::new("from-scratch", OnResume::Free),
    Setting::new("dtype", OnResume::Free),
    Setting::new("gpu-memory", OnResume::Free).count(0, |s| s.gpu_memory),
    // Other examples are found by their fingerprint.
    Setting::new("data-format", OnResume::Free),
];

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ObjectiveChoice {
    /// Name in settings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
            Self::Rpo => "rpo",
            Self::Orpo => "orpo",
            Self::Simpo => "simpo",
            Self::Kto => "kto",
            Self::Distill => "distill",
        }
    }

    /// The learning rate where the user names none: preferences take a tenth of that of answers.
    pub fn default_lr(self) -> f64 {
        match self {
            Self::Sft | Self::Distill => 2e-4,
            _ => 2e-5,
        }
    }
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            data: DataSources::default(),
            out: PathBuf::new(),
            method: Method::Qlora,
            objective: ObjectiveChoice::Sft,
            beta: None,
            label_smoothing: None,
            rpo_alpha: None,
            simpo_gamma: None,
            desirable_weight: None,
            undesirable_weight: None,
            teacher: None,
            temperature: None,
            hard_label_share: None,
            quant: Code4::default(),
            keep_blocks: false,
            double_quant: true,
            quantize_embedding: false,
            rank: 16,
            alpha: 16.0,
            dropout: 0.0,
            loraplus_lr_ratio: None,
            target_modules: "all-linear".to_owned(),
            rslora: false,
            use_dora: false,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            layers_to_transform: None,
            layers_pattern: None,
            exclude_modules: None,
            modules_to_save: None,
            trainable_token_indices: None,
            add_tokens: None,
            add_special_tokens: None,
            bias: Bias::None,
            lora_bias: false,
            init_lora_weights: LoraInit::KaimingUniform,
            init_adapter: None,
            batch_size: 4,
            grad_accum: 1,
            world_size: None,
            max_seq_len: None,
            steps: None,
            epochs: None,
            optim: Optim::Adamw,
            adam_beta1: AdamW::default().beta1,
            adam_beta2: AdamW::default().beta2,
            adam_eps: AdamW::default().eps,
            lr: ObjectiveChoice::Sft.default_lr(),
            schedule: Schedule::Linear,
            num_cycles: None,
            min_lr_ratio: None,
            num_decay_steps: None,
            decay_type: None,
            power: None,
            timescale: None,
            warmup_steps: 0,
            warmup_ratio: None,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            neftune_noise_alpha: None,
            seed: 0,
            shuffle: true,
            eval_data: None,
            eval_fraction: None,
            eval_every: 0,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            load_best_model_at_end: false,
            save_every: 0,
            save_minutes: 10.0,
            keep: 2,
            log_every: 1,
            recompute: RecomputeChoice::Auto,
            activations: ActivationsChoice::Auto,
            tensorboard: false,
            from_scratch: false,
            dtype: None,
            gpu_memory: None,
            data_format: DataSettings::default(),
        }
    }
}

impl RunSettings {
    /// Settings from a TOML table; absent keys have their defaults.
    ///
    /// # Errors
    /// A key that there is not, with the nearest one that there is, or a value of the wrong kind.
    pub fn from_table(table: toml::Table) -> Result<Self> {
        let known = || SETTINGS.iter().map(|setting| setting.key.0);
        if let Some(key) = table.keys().find(|key| !known().any(|known| known == *key)) {
            let nearest = known().min_by_key(|known| strsim::levenshtein(known, key)).unwrap_or_default();
            return Err(Error::Argument(format!("`{key}` is not a setting; the nearest is `{nearest}`")));
        }
        for (key, value) in &table {
            let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
            let problem = |e: toml::de::Error| Error::Argument(format!("`{key}`: {}", e.message()));
            alone.try_into::<Self>().map_err(problem)?;
        }
        table.try_into().map_err(|e: toml::de::Error| Error::Argument(e.message().to_owned()))
    }

    /// Checks every setting alone and with the others.
    ///
    /// # Errors
    /// The first setting that cannot work, with what would be right.
    pub fn check(&self) -> Result<()> {
        let full = METHOD.is("full");
        if self.method == Method::Full && self.init_adapter.is_some() {
            let problem = format!("{INIT_ADAPTER} starts an adapter, but {full} trains the model itself");
            return Err(Error::setting(INIT_ADAPTER, problem));
        }
        if self.method == Method::Full && self.loraplus_lr_ratio.is_some() {
            let key = Key("loraplus-lr-ratio");
            return Err(Error::setting(key, format!("{key} is for the factors of an adapter, but {full} trains none")));
        }
        self.check_new_tokens()?;
        let of_new_adapter = [
            ("rank-pattern", !self.rank_pattern.is_empty()),
            ("alpha-pattern", !self.alpha_pattern.is_empty()),
            ("layers-to-transform", self.layers_to_transform.is_some()),
            ("exclude-modules", self.exclude_modules.is_some()),
            ("modules-to-save", self.modules_to_save.is_some()),
            ("trainable-token-indices", self.trainable_token_indices.is_some()),
            ("add-tokens", self.add_tokens.is_some()),
            ("add-special-tokens", self.add_special_tokens.is_some()),
            ("bias", self.bias != Bias::None),
            ("lora-bias", self.lora_bias),
            ("init-lora-weights", self.init_lora_weights != LoraInit::KaimingUniform),
        ];
        if let Some((name, _)) = of_new_adapter.into_iter().find(|(_, given)| *given && self.init_adapter.is_some()) {
            let key = Key(name);
            return Err(Error::setting(key, format!("{key} is for a new adapter, but {INIT_ADAPTER} brings its own")));
        }
        for (key, given) in [(FROM_SCRATCH, self.from_scratch), (DTYPE, self.dtype.is_some())] {
            if given && self.method != Method::Full {
                let problem = format!("{key} is for {full}; LoRA and QLoRA leave the model as it is");
                return Err(Error::setting(key, problem));
            }
        }
        if !Code4::ALL.contains(&self.quant) {
            return Err(Error::setting(
                QUANT,
                format!("is {}, to which nothing is quantized; take {}", self.quant, Code4::names()),
            ));
        }
        if self.keep_blocks && (self.method != Method::Qlora || self.quantize_embedding) {
            let keep = QUANT.is("keep");
            let problem = format!("{keep} is for {} without {QUANTIZE_EMBEDDING}", METHOD.is("qlora"));
            return Err(Error::setting(QUANT, problem));
        }
        if self.quantize_embedding && self.method != Method::Qlora {
            let problem = format!(
                "{QUANTIZE_EMBEDDING} is for {}; the other methods hold the base unquantized",
                METHOD.is("qlora")
            );
            return Err(Error::setting(QUANTIZE_EMBEDDING, problem));
        }
        if let Some(name) =
            self.saved_modules().iter().find(|name| !matches!(last_part(name), "embed_tokens" | "lm_head"))
        {
            let problem = format!("{MODULES_TO_SAVE} is {name}, but must be embed_tokens, lm_head or both");
            return Err(Error::setting(MODULES_TO_SAVE, problem));
        }
        self.check_layers_pattern()?;
        self.check_objective()?;
        self.check_schedule()?;
        self.check_best()?;
        SETTINGS.iter().try_for_each(|setting| setting.check(self))
    }

    /// Takes the date over that the run in `out` wrote into its chat template, unless these settings name one.
    pub fn follow_recorded_date(&mut self) {
        let date = &mut self.data_format.template_date;
        *date = date.take().or_else(|| DataSettings::recorded(&self.out)?.template_date);
    }

    /// The names of `modules_to_save`.
    fn saved_modules(&self) -> Vec<String> {
        let names = self.modules_to_save.iter().flat_map(|names| names.split(','));
        names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    fn check_layers_pattern(&self) -> Result<()> {
        match &self.layers_pattern {
            Some(name) if name != "layers" => {
                let problem = format!("{LAYERS_PATTERN} is {name}, but these models have one list of layers, `layers`");
                Err(Error::setting(LAYERS_PATTERN, problem))
            }
            _ => Ok(()),
        }
    }

    /// The loss of a student of a teacher with `top_k` tokens for each row; None for other objectives.
    pub fn distillation(&self, top_k: usize) -> Option<Distillation> {
        let of = |temperature: f64, share: f64| Distillation {
            top_k: top_k as u32,
            temperature: temperature as f32,
            hard_label_share: share as f32,
        };
        let is_it = self.objective == ObjectiveChoice::Distill;
        is_it.then(|| of(self.temperature.unwrap_or(1.0), self.hard_label_share.unwrap_or(0.0)))
    }

    /// The sequences of an example: preference objectives compare two.
    pub fn sequences_per_example(&self) -> usize {
        match self.objective() {
            Objective::Preference(_) => 2,
            Objective::Sft | Objective::Distill { .. } => 1,
        }
    }

    /// The objective with its parameters.
    pub fn objective(&self) -> Objective {
        let loss = match self.objective {
            ObjectiveChoice::Sft => return Objective::Sft,
            ObjectiveChoice::Distill => {
                return Objective::Distill { hard_label_share: self.hard_label_share.unwrap_or(0.0) };
            }
            ObjectiveChoice::Dpo => PreferenceLoss::Dpo,
            ObjectiveChoice::Ipo => PreferenceLoss::Ipo,
            ObjectiveChoice::Rpo => PreferenceLoss::Rpo,
            ObjectiveChoice::Orpo => PreferenceLoss::Orpo,
            ObjectiveChoice::Simpo => PreferenceLoss::Simpo,
            ObjectiveChoice::Kto => PreferenceLoss::Kto,
        };
        let plain = Preference::new(loss);
        Objective::Preference(Preference {
            loss,
            beta: self.beta.unwrap_or(plain.beta),
            label_smoothing: self.label_smoothing.unwrap_or(plain.label_smoothing),
            rpo_alpha: self.rpo_alpha.unwrap_or(plain.rpo_alpha),
            simpo_gamma: self.simpo_gamma.unwrap_or(plain.simpo_gamma),
            desirable_weight: self.desirable_weight.unwrap_or(plain.desirable_weight),
            undesirable_weight: self.undesirable_weight.unwrap_or(plain.undesirable_weight),
        })
    }

    /// Parameters of a schedule are for those that have them.
    fn check_schedule(&self) -> Result<()> {
        use Schedule::{Cosine, CosineWithRestarts, InverseSqrt, Polynomial, WarmupStableDecay};
        let parameters: [(&'static str, bool, &[Schedule]); 6] = [
            ("num-cycles", self.num_cycles.is_some(), &[CosineWithRestarts]),
            ("min-lr-ratio", self.min_lr_ratio.is_some(), &[Cosine, WarmupStableDecay, Polynomial]),
            ("num-decay-steps", self.num_decay_steps.is_some(), &[WarmupStableDecay]),
            ("decay-type", self.decay_type.is_some(), &[WarmupStableDecay]),
            ("power", self.power.is_some(), &[Polynomial]),
            ("timescale", self.timescale.is_some(), &[InverseSqrt]),
        ];
        check_use(self.schedule, &parameters, |schedule| Key("schedule").is(schedule.name()))
    }

    /// The schedule of a run of `steps` optimizer steps, with its parameters.
    pub fn decay(&self, steps: usize) -> Decay {
        let least = match self.schedule {
            Schedule::Polynomial => (1e-7 / self.lr).min(1.0),
            _ => 0.0,
        };
        // Without a warm-up, transformers stretches by 10000 steps.
        let stretch = if self.warmup_steps > 0 { self.warmup_steps } else { 10_000 };
        Decay {
            schedule: self.schedule,
            warmup: self.warmup_steps,
            num_cycles: self.num_cycles.unwrap_or(1),
            min_lr_ratio: self.min_lr_ratio.unwrap_or(least),
            num_decay_steps: self.num_decay_steps.unwrap_or_else(|| steps.div_ceil(10)),
            decay_type: self.decay_type.unwrap_or_default(),
            power: self.power.unwrap_or(1.0),
            timescale: self.timescale.unwrap_or(stretch),
        }
    }

    /// Parameters of an objective are for those that have them, and pairs are not split.
    fn check_objective(&self) -> Result<()> {
        use ObjectiveChoice::{Distill, Dpo, Ipo, Kto, Orpo, Rpo, Sft, Simpo};
        let parameters: [(&'static str, bool, &[ObjectiveChoice]); 9] = [
            ("beta", self.beta.is_some(), &[Dpo, Ipo, Rpo, Orpo, Simpo, Kto]),
            ("label-smoothing", self.label_smoothing.is_some(), &[Dpo, Rpo, Simpo]),
            ("rpo-alpha", self.rpo_alpha.is_some(), &[Rpo]),
            ("simpo-gamma", self.simpo_gamma.is_some(), &[Simpo]),
            ("desirable-weight", self.desirable_weight.is_some(), &[Kto]),
            ("undesirable-weight", self.undesirable_weight.is_some(), &[Kto]),
            ("teacher", self.teacher.is_some(), &[Distill]),
            ("temperature", self.temperature.is_some(), &[Distill]),
            ("hard-label-share", self.hard_label_share.is_some(), &[Distill]),
        ];
        check_use(self.objective, &parameters, |objective| OBJECTIVE.is(objective.name()))?;
        if self.objective == Distill && self.teacher.is_none() {
            let own = OBJECTIVE.is(self.objective.name());
            let problem = format!("{own} needs {TEACHER}, a file of log-probabilities that `loraine distill` writes");
            return Err(Error::setting(TEACHER, problem));
        }
        if !matches!(self.objective, Sft | Distill) && self.data_format.on_long == OnLong::Split {
            let (split, own) = (ON_LONG.is("split"), OBJECTIVE.is(self.objective.name()));
            let (truncate, drop) = (ON_LONG.is("truncate"), ON_LONG.is("drop"));
            let problem = format!("{split} would tear the answers of {own} apart; choose {truncate} or {drop}");
            return Err(Error::setting(ON_LONG, problem));
        }
        if self.objective == Kto && self.batch_size < 2 {
            let problem = format!(
                "{BATCH_SIZE} is {}, but {} compares the answers of a batch with each other: it must be at least 2",
                self.batch_size,
                OBJECTIVE.is("kto")
            );
            return Err(Error::setting(BATCH_SIZE, problem));
        }
        Ok(())
    }

    /// The best evaluation is found among those between the first step and the last.
    fn check_best(&self) -> Result<()> {
        let key = match self.early_stopping_patience {
            Some(_) => EARLY_STOPPING_PATIENCE,
            None if self.load_best_model_at_end => LOAD_BEST_MODEL_AT_END,
            None => return Ok(()),
        };
        if self.eval_every == 0 {
            let problem = format!("{key} compares evaluations during the run: set {EVAL_EVERY} too, 100 for instance");
            return Err(Error::setting(key, problem));
        }
        Ok(())
    }

    /// New tokens are rows of an adapter, each once, and no whole copy stands beside them.
    fn check_new_tokens(&self) -> Result<()> {
        let mut seen = std::collections::HashSet::new();
        let saved = self.saved_modules();
        for (key, token) in self.new_tokens() {
            let refuse = |problem: String| Err(Error::setting(key, problem));
            if self.method == Method::Full {
                let (full, lora, qlora) = (METHOD.is("full"), METHOD.is("lora"), METHOD.is("qlora"));
                return refuse(format!(
                    "{key} trains rows beside an adapter, but {full} trains none; choose {lora} or {qlora}"
                ));
            }
            if !saved.is_empty() {
                return refuse(format!(
                    "{key} trains rows of the embedding, and {MODULES_TO_SAVE} a whole copy; choose one"
                ));
            }
            if token.trim().is_empty() || !seen.insert(token) {
                return refuse(format!("{key} has {token:?}; each token is a text, given once"));
            }
        }
        Ok(())
    }

    /// The texts that become tokens, with their settings: ordinary tokens, then special ones.
    pub fn new_tokens(&self) -> impl Iterator<Item = (Key, &str)> {
        let ordinary = self.add_tokens.iter().flatten().map(|text| (ADD_TOKENS, text.as_str()));
        ordinary.chain(self.add_special_tokens.iter().flatten().map(|text| (ADD_SPECIAL_TOKENS, text.as_str())))
    }

    /// True if the run leaves the values of its best evaluation.
    pub fn keeps_best(&self) -> bool {
        self.load_best_model_at_end || self.early_stopping_patience.is_some()
    }

    /// Storage of the base on the device for the method.
    pub fn base_storage(&self) -> BaseStorage {
        match self.method {
            Method::Qlora if self.keep_blocks => BaseStorage::KeptBlocks,
            Method::Qlora => BaseStorage::quantized(self.quant.storage(self.double_quant), self.quantize_embedding),
            Method::Lora => BaseStorage::AsStored,
            Method::Full => BaseStorage::Trained,
        }
    }

    /// The contents of `adapter_config.json` for a new adapter.
    pub fn lora_config(&self) -> LoraConfig {
        LoraConfig {
            r: self.rank,
            lora_alpha: self.alpha,
            lora_dropout: self.dropout,
            target_modules: TargetModules::from_argument(&self.target_modules),
            use_rslora: self.rslora,
            use_dora: self.use_dora,
            rank_pattern: self.rank_pattern.0.clone(),
            alpha_pattern: self.alpha_pattern.0.clone(),
            layers_to_transform: self.layers_to_transform.clone().filter(|layers| !layers.is_empty()),
            exclude_modules: self.exclude_modules.as_deref().and_then(ExcludeModules::from_argument),
            modules_to_save: self.saved_modules(),
            trainable_token_indices: self
                .trainable_token_indices
                .iter()
                .filter(|tokens| !tokens.is_empty())
                .map(|tokens| ("embed_tokens".to_owned(), tokens.clone()))
                .collect(),
            bias: self.bias,
            lora_bias: self.lora_bias,
            base_model_name_or_path: Some(base_name(&self.model)),
            init_lora_weights: self.init_lora_weights,
            ..LoraConfig::default()
        }
    }

    /// AdamW's coefficients, weight decay and gradient norm.
    pub fn optimizer(&self) -> AdamW {
        AdamW {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            max_norm: self.max_grad_norm,
            loraplus_lr_ratio: self.loraplus_lr_ratio.unwrap_or(1.0),
        }
    }
}

/// Refuses parameters that are given though `own` has no use for them. Each has its key, whether it is given, and those that use it.
fn check_use<T: Copy + PartialEq>(
    own: T,
    parameters: &[(&'static str, bool, &[T])],
    shown: impl Fn(T) -> String,
) -> Result<()> {
    for (name, given, users) in parameters {
        if *given && !users.contains(&own) {
            let key = Key(name);
            let mut fitting: Vec<String> = users.iter().map(|user| shown(*user)).collect();
            let last = fitting.pop().unwrap_or_default();
            let before = if fitting.is_empty() { String::new() } else { format!("{} and ", fitting.join(", ")) };
            let problem = format!("{key} has no use with {}; it is for {before}{last}", shown(own));
            return Err(Error::setting(key, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults with a value in every optional field, so that each key shows.
    fn filled() -> RunSettings {
        let path = Some(PathBuf::new());
        RunSettings {
            rank_pattern: Patterns(vec![("q_proj".into(), 2)]),
            alpha_pattern: Patterns(vec![("q_proj".into(), 2.0)]),
            layers_to_transform: Some(vec![0]),
            layers_pattern: Some("layers".into()),
            exclude_modules: Some("v_proj".into()),
            modules_to_save: Some("lm_head".into()),
            trainable_token_indices: Some(vec![3]),
            add_tokens: Some(vec!["<think>".into()]),
            add_special_tokens: Some(vec!["<|im_end|>".into()]),
            objective: ObjectiveChoice::Dpo,
            beta: Some(0.2),
            label_smoothing: Some(0.1),
            rpo_alpha: Some(0.5),
            simpo_gamma: Some(1.0),
            desirable_weight: Some(1.5),
            undesirable_weight: Some(0.5),
            teacher: path.clone(),
            temperature: Some(2.0),
            hard_label_share: Some(0.5),
            early_stopping_patience: Some(1),
            init_adapter: path.clone(),
            max_seq_len: Some(2),
            steps: Some(1),
            epochs: Some(1.0),
            warmup_ratio: Some(0.1),
            loraplus_lr_ratio: Some(16.0),
            neftune_noise_alpha: Some(5.0),
            world_size: Some(2),
            num_cycles: Some(2),
            min_lr_ratio: Some(0.1),
            num_decay_steps: Some(3),
            decay_type: Some(DecayType::OneMinusSqrt),
            power: Some(2.0),
            timescale: Some(100),
            eval_data: path,
            eval_fraction: Some(0.1),
            dtype: Some(Float::Bf16),
            gpu_memory: Some(1),
            ..RunSettings::default()
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let fine = RunSettings::default();
        fine.check().unwrap();
        type Change = fn(&mut RunSettings);
        let cases: [(&str, Change); 14] = [
            ("rank", |s| s.rank = 0),
            ("batch-size", |s| s.batch_size = 0),
            ("steps", |s| s.steps = Some(0)),
            ("dropout", |s| s.dropout = 1.0),
            ("loraplus-lr-ratio", |s| s.loraplus_lr_ratio = Some(0.0)),
            ("neftune-noise-alpha", |s| s.neftune_noise_alpha = Some(f64::NAN)),
            ("lr", |s| s.lr = f64::NAN),
            ("epochs", |s| s.epochs = Some(-1.0)),
            ("max-seq-len", |s| s.max_seq_len = Some(1)),
            ("weight-decay", |s| s.weight_decay = -0.1),
            ("seed", |s| s.seed = u64::MAX),
            ("weight-decay", |s| s.weight_decay = f64::INFINITY),
            ("max-grad-norm", |s| s.max_grad_norm = f64::NAN),
            ("gpu-memory", |s| s.gpu_memory = Some(u64::MAX)),
        ];
        for (name, change) in cases {
            let mut settings = fine.clone();
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert!(error.to_string().starts_with(&format!("⟨{name}⟩ is ")), "{error}");
            assert!(matches!(error, Error::Setting { key, .. } if key == name), "{error}");
        }
    }

    #[test]
    fn parameters_belong_to_their_objective() {
        type Change = fn(&mut RunSettings);
        let cases: [(Change, &str); 5] = [
            (|s| s.beta = Some(0.2), "⟨beta⟩ has no use with ⟨objective=sft⟩"),
            (
                |s| (s.objective, s.label_smoothing) = (ObjectiveChoice::Kto, Some(0.1)),
                "it is for ⟨objective=dpo⟩, ⟨objective=rpo⟩ and ⟨objective=simpo⟩",
            ),
            (|s| (s.objective, s.beta) = (ObjectiveChoice::Dpo, Some(0.0)), "⟨beta⟩ is 0"),
            (|s| (s.objective, s.batch_size) = (ObjectiveChoice::Kto, 1), "⟨batch-size⟩ is 1"),
            (
                |s| (s.objective, s.data_format.on_long) = (ObjectiveChoice::Ipo, OnLong::Split),
                "⟨on-long=split⟩ would tear",
            ),
        ];
        for (change, says) in cases {
            let mut settings = RunSettings::default();
            change(&mut settings);
            let message = settings.check().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        let kto = RunSettings { objective: ObjectiveChoice::Kto, desirable_weight: Some(2.0), ..Default::default() };
        kto.check().unwrap();
        assert_eq!(kto.objective().preference().map(|kto| (kto.beta, kto.desirable_weight)), Some((0.1, 2.0)));
    }

    #[test]
    fn parameters_belong_to_their_schedule() {
        type Change = fn(&mut RunSettings);
        let cases: [(Change, &str); 6] = [
            (
                |s| s.num_cycles = Some(2),
                "⟨num-cycles⟩ has no use with ⟨schedule=linear⟩; it is for ⟨schedule=cosine-with-restarts⟩",
            ),
            (
                |s| s.min_lr_ratio = Some(0.1),
                "it is for ⟨schedule=cosine⟩, ⟨schedule=warmup-stable-decay⟩ and ⟨schedule=polynomial⟩",
            ),
            (|s| s.timescale = Some(3), "it is for ⟨schedule=inverse-sqrt⟩"),
            (|s| (s.schedule, s.power) = (Schedule::Cosine, Some(2.0)), "it is for ⟨schedule=polynomial⟩"),
            (|s| (s.schedule, s.decay_type) = (Schedule::Cosine, Some(DecayType::Linear)), "⟨decay-type⟩ has no use"),
            (|s| (s.schedule, s.min_lr_ratio) = (Schedule::Cosine, Some(1.0)), "⟨min-lr-ratio⟩ is 1"),
        ];
        for (change, says) in cases {
            let mut settings = RunSettings::default();
            change(&mut settings);
            let message = settings.check().unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        for name in [
            "cosine_with_restarts",
            "warmup_stable_decay",
            "wsd",
            "cosine_with_min_lr",
            "constant_with_warmup",
            "polynomial",
            "inverse_sqrt",
        ] {
            serde_json::from_value::<Schedule>(name.into()).unwrap();
        }
        let wsd = RunSettings { schedule: Schedule::WarmupStableDecay, ..RunSettings::default() };
        assert_eq!([wsd.decay(95).num_decay_steps, wsd.decay(5).num_decay_steps], [10, 1]);
        let root =
            |warmup_steps| RunSettings { schedule: Schedule::InverseSqrt, warmup_steps, ..RunSettings::default() };
        assert_eq!([root(7).decay(20).timescale, root(0).decay(20).timescale], [7, 10_000]);
        let polynomial = RunSettings { schedule: Schedule::Polynomial, lr: 1e-3, ..RunSettings::default() };
        assert_eq!(polynomial.decay(20).min_lr_ratio, 1e-7 / 1e-3);
    }

    #[test]
    fn the_best_is_found_among_evaluations() {
        let stopping = |change: fn(&mut RunSettings)| {
            let mut settings = RunSettings { early_stopping_patience: Some(2), eval_every: 5, ..Default::default() };
            change(&mut settings);
            settings.check().map_err(|e| e.to_string())
        };
        stopping(|_| ()).unwrap();
        assert!(stopping(|s| s.eval_every = 0).unwrap_err().contains("set ⟨eval-every⟩ too"));
        let alone = stopping(|s| (s.early_stopping_patience, s.eval_every, s.load_best_model_at_end) = (None, 0, true));
        assert!(alone.unwrap_err().starts_with("⟨load-best-model-at-end⟩ compares"));
        assert!(stopping(|s| s.early_stopping_patience = Some(0)).unwrap_err().contains("must be at least 1"));
        assert!(stopping(|s| s.layers_pattern = Some("h".into())).unwrap_err().contains("`layers`"));
    }

    #[test]
    fn every_setting_has_one_row() {
        let keys: Vec<_> = SETTINGS.iter().map(|setting| setting.key.0).collect();
        let serialized = serde_json::to_value(filled()).unwrap();
        assert_eq!(keys, serialized.as_object().unwrap().keys().collect::<Vec<_>>());
    }

    #[test]
    fn settings_survive_toml() {
        let settings = RunSettings { steps: Some(7), gpu_memory: Some(12_000_000_000), ..Default::default() };
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<RunSettings>(&text).unwrap(), settings);
        let message = RunSettings::from_table(toml::from_str("rnak = 3").unwrap()).unwrap_err().to_string();
        assert_eq!(message, "`rnak` is not a setting; the nearest is `rank`");
        let message = RunSettings::from_table(toml::from_str("eval_data = 'x'").unwrap()).unwrap_err().to_string();
        assert!(message.ends_with("`eval-data`"), "{message}");
        let patterns = r#"rank-pattern = { "layers.1.*q_proj" = 2, q_proj = 4 }
            alpha-pattern = { a = 1.5 }
            init-lora-weights = true
            layers-to-transform = [0, 2]"#;
        let read = RunSettings::from_table(toml::from_str(patterns).unwrap()).unwrap();
        let ranks = vec![("layers.1.*q_proj".to_owned(), 2), ("q_proj".to_owned(), 4)];
        assert_eq!((&read.rank_pattern.0, &read.layers_to_transform), (&ranks, &Some(vec![0, 2])));
        assert_eq!(toml::from_str::<RunSettings>(&toml::to_string(&read).unwrap()).unwrap(), read);
        for (text, says) in [("init-lora-weights = false", "gaussian"), ("rank-pattern = 3", "values by pattern")] {
            let message = RunSettings::from_table(toml::from_str(text).unwrap()).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        let optim = |name: &str| RunSettings::from_table(toml::from_str(&format!("optim = '{name}'")).unwrap());
        for name in ["adamw8bit", "adamw_8bit", "adamw_bnb_8bit"] {
            assert_eq!(optim(name).unwrap().optim, Optim::Adamw8bit);
        }
        assert_eq!(optim("lion_32bit").unwrap().optim, Optim::Lion);
        let message = optim("sgd").unwrap_err().to_string();
        assert!(message.starts_with("`optim`: ") && message.contains("`adamw8bit`"), "{message}");
    }
}
