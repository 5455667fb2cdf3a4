//! The settings of a run: the command line, a TOML file and a page are views of this one struct.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use crate::data::settings::DataSettings;
use crate::hub::base_name;
use crate::lora::config::{LoraConfig, LoraInit, TargetModules};
use crate::network::base::BaseStorage;
use crate::network::moments::MomentStorage;
use crate::ops::adamw::AdamW;
use crate::quant::format::{Code4, Float};
use crate::{Error, Result};

/// What is trained, and how the base is held meanwhile.
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
    Adamw,
    /// AdamW with its moments in 8 bits.
    #[serde(alias = "adamw_8bit", alias = "adamw_bnb_8bit")]
    #[cfg_attr(feature = "cli", value(name = "adamw8bit", aliases = ["adamw_8bit", "adamw_bnb_8bit"]))]
    Adamw8bit,
}

impl Optim {
    pub fn moments(self) -> MomentStorage {
        match self {
            Self::Adamw => MomentStorage::F32,
            Self::Adamw8bit => MomentStorage::EightBit,
        }
    }
}

/// Which layers keep their activations for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RecomputeChoice {
    /// As many as fit into a budget.
    Auto,
    /// Keep everything.
    None,
    /// Keep each layer's input alone.
    All,
}

/// How activations are kept for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum ActivationsChoice {
    /// In f32, unless only bf16 fits into the budget.
    Auto,
    F32,
    Bf16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct RunSettings {
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub model: PathBuf,
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub data: PathBuf,
    #[cfg_attr(target_arch = "wasm32", tsify(type = "string"))]
    pub out: PathBuf,
    pub method: Method,
    /// 4-bit code of the base under QLoRA.
    pub quant: Code4,
    pub double_quant: bool,
    /// Embedding and head in 4 bits too, where the base is.
    pub quantize_embedding: bool,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// `all-linear`, names separated by commas, or a regular expression.
    pub target_modules: String,
    pub rslora: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "string"))]
    pub init_adapter: Option<PathBuf>,
    pub batch_size: usize,
    pub grad_accum: usize,
    /// None takes 512, or what the model has if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Used where `steps` is absent; 1 where both are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    pub optim: Optim,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup_steps: usize,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub seed: u64,
    pub shuffle: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(target_arch = "wasm32", tsify(optional, type = "string"))]
    pub eval_data: Option<PathBuf>,
    /// Share of the data held out for evaluation where there is no `eval_data`.
    pub eval_fraction: f64,
    /// 0 evaluates at the end alone.
    pub eval_every: usize,
    /// 0 saves at the end alone.
    pub save_every: usize,
    /// Checkpoints that stay; the oldest go first.
    pub keep: usize,
    pub log_every: usize,
    pub recompute: RecomputeChoice,
    pub activations: ActivationsChoice,
    /// Whether TensorBoard's event files are written beside the metrics.
    pub tensorboard: bool,
    /// Full training from new weights: the model directory needs no weights.
    pub from_scratch: bool,
    /// Type of the weights that full training saves; without it the one that the base has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Float>,
    /// What the run may take on the device, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// How the data's files become examples; its `max_seq_len` is the run's.
    pub data_format: DataSettings,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            data: PathBuf::new(),
            out: PathBuf::new(),
            method: Method::Qlora,
            quant: Code4::default(),
            double_quant: true,
            quantize_embedding: false,
            rank: 16,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: "all-linear".to_owned(),
            rslora: false,
            init_adapter: None,
            batch_size: 4,
            grad_accum: 1,
            max_seq_len: None,
            steps: None,
            epochs: None,
            optim: Optim::Adamw,
            lr: 2e-4,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            seed: 0,
            shuffle: true,
            eval_data: None,
            eval_fraction: 0.0,
            eval_every: 0,
            save_every: 0,
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
        let known = toml::Table::try_from(Self::filled()).map_err(|e| Error::Setting(e.to_string()))?;
        if let Some(key) = table.keys().find(|key| !known.contains_key(*key)) {
            let nearest = known.keys().min_by_key(|k| edit_distance(k, key)).cloned().unwrap_or_default();
            return Err(Error::Setting(format!("`{key}` is no setting; the nearest is `{nearest}`")));
        }
        for (key, value) in &table {
            let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
            let problem = |e: toml::de::Error| Error::Setting(format!("`{key}`: {}", e.message()));
            alone.try_into::<Self>().map_err(problem)?;
        }
        table.try_into().map_err(|e: toml::de::Error| Error::Setting(e.message().to_owned()))
    }

    /// The defaults with a value in every optional field, so that each key shows.
    fn filled() -> Self {
        let path = Some(PathBuf::new());
        Self {
            init_adapter: path.clone(),
            max_seq_len: Some(2),
            steps: Some(1),
            epochs: Some(1.0),
            eval_data: path,
            dtype: Some(Float::Bf16),
            gpu_memory: Some(1),
            ..Self::default()
        }
    }

    /// # Errors
    /// The first setting that cannot work, with what would be right.
    pub fn check(&self) -> Result<()> {
        let bad = |problem: String| Err(Error::Setting(problem));
        if self.method == Method::Full && self.init_adapter.is_some() {
            return bad("--init-adapter starts an adapter, but --method full trains the model itself".to_owned());
        }
        for (flag, given) in [("--from-scratch", self.from_scratch), ("--dtype", self.dtype.is_some())] {
            if given && self.method != Method::Full {
                return bad(format!("{flag} is for --method full; LoRA and QLoRA leave the model as it is"));
            }
        }
        if self.quantize_embedding && self.method != Method::Qlora {
            return bad(
                "--quantize-embedding is for --method qlora; the other methods hold the base unquantized".to_owned()
            );
        }
        if self.rank == 0 {
            return bad("--rank is 0; a LoRA adapter needs a rank of at least 1".to_owned());
        }
        for (flag, value) in [("--batch-size", self.batch_size), ("--grad-accum", self.grad_accum)] {
            if value == 0 {
                return bad(format!("{flag} is 0; it must be at least 1"));
            }
        }
        // TOML's integers end there, and run.toml must hold every setting.
        let largest = i64::MAX as u64;
        for (flag, value) in [
            ("--seed", self.seed),
            ("--batch-size", self.batch_size as u64),
            ("--grad-accum", self.grad_accum as u64),
            ("--steps", self.steps.unwrap_or(1) as u64),
            ("--warmup-steps", self.warmup_steps as u64),
            ("--eval-every", self.eval_every as u64),
            ("--save-every", self.save_every as u64),
            ("--log-every", self.log_every as u64),
            ("--keep", self.keep as u64),
            ("--gpu-memory", self.gpu_memory.unwrap_or(1)),
        ] {
            if value > largest {
                return bad(format!("{flag} is {value}; it must be at most {largest}"));
            }
        }
        if self.steps == Some(0) {
            return bad("--steps is 0; training needs at least 1".to_owned());
        }
        if self.max_seq_len.is_some_and(|n| n < 2) {
            return bad("--max-seq-len must be at least 2: a token and the one it predicts".to_owned());
        }
        if self.log_every == 0 {
            return bad("--log-every is 0; it must be at least 1".to_owned());
        }
        for (flag, value, below) in [("--dropout", self.dropout, 1.0), ("--eval-fraction", self.eval_fraction, 1.0)] {
            if !(0.0..below).contains(&value) {
                return bad(format!("{flag} is {value}; it must be at least 0 and below {below}"));
            }
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        for (flag, value, fine) in [
            ("--alpha", self.alpha, positive(self.alpha)),
            ("--lr", self.lr, positive(self.lr)),
            ("--epochs", self.epochs.unwrap_or(1.0), self.epochs.is_none_or(positive)),
            ("--weight-decay", self.weight_decay, self.weight_decay == 0.0 || positive(self.weight_decay)),
            ("--max-grad-norm", self.max_grad_norm, self.max_grad_norm == 0.0 || positive(self.max_grad_norm)),
        ] {
            if !fine {
                return bad(format!("{flag} is {value}; it must be a positive number"));
            }
        }
        Ok(())
    }

    pub fn base_storage(&self) -> BaseStorage {
        match self.method {
            Method::Qlora => BaseStorage::quantized(self.quant.storage(self.double_quant), self.quantize_embedding),
            Method::Lora => BaseStorage::AsStored,
            Method::Full => BaseStorage::Trained,
        }
    }

    pub fn lora_config(&self) -> LoraConfig {
        LoraConfig {
            r: self.rank,
            lora_alpha: self.alpha,
            lora_dropout: self.dropout,
            target_modules: TargetModules::from_argument(&self.target_modules),
            use_rslora: self.rslora,
            base_model_name_or_path: Some(base_name(&self.model)),
            init_lora_weights: LoraInit::KaimingUniform,
            ..LoraConfig::default()
        }
    }

    pub fn optimizer(&self) -> AdamW {
        AdamW { weight_decay: self.weight_decay, max_norm: self.max_grad_norm, ..AdamW::default() }
    }
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = corner + usize::from(from != *to);
            corner = std::mem::replace(&mut row[j + 1], 0);
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_name_their_flag() {
        let fine = RunSettings::default();
        fine.check().unwrap();
        type Change = fn(&mut RunSettings);
        let cases: [(&str, Change); 10] = [
            ("--rank", |s| s.rank = 0),
            ("--batch-size", |s| s.batch_size = 0),
            ("--steps", |s| s.steps = Some(0)),
            ("--dropout", |s| s.dropout = 1.0),
            ("--lr", |s| s.lr = f64::NAN),
            ("--epochs", |s| s.epochs = Some(-1.0)),
            ("--max-seq-len", |s| s.max_seq_len = Some(1)),
            ("--weight-decay", |s| s.weight_decay = -0.1),
            ("--seed", |s| s.seed = u64::MAX),
            ("--gpu-memory", |s| s.gpu_memory = Some(u64::MAX)),
        ];
        for (flag, change) in cases {
            let mut settings = fine.clone();
            change(&mut settings);
            let message = settings.check().unwrap_err().to_string();
            assert!(message.starts_with(flag), "{message}");
        }
    }

    #[test]
    fn settings_survive_toml() {
        let settings = RunSettings { steps: Some(7), gpu_memory: Some(12_000_000_000), ..Default::default() };
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<RunSettings>(&text).unwrap(), settings);
        let message = RunSettings::from_table(toml::from_str("rnak = 3").unwrap()).unwrap_err().to_string();
        assert_eq!(message, "`rnak` is no setting; the nearest is `rank`");
        let message = RunSettings::from_table(toml::from_str("eval_data = 'x'").unwrap()).unwrap_err().to_string();
        assert!(message.ends_with("`eval-data`"), "{message}");
        let optim = |name: &str| RunSettings::from_table(toml::from_str(&format!("optim = '{name}'")).unwrap());
        for name in ["adamw8bit", "adamw_8bit", "adamw_bnb_8bit"] {
            assert_eq!(optim(name).unwrap().optim, Optim::Adamw8bit);
        }
        let message = optim("sgd").unwrap_err().to_string();
        assert!(message.starts_with("`optim`: ") && message.contains("`adamw8bit`"), "{message}");
    }
}
