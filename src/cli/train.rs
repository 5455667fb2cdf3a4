//! `loraine train`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use loraine::Error;
use loraine::gpu::Capabilities;
use loraine::hub::fetch::Extent;
use loraine::lora::adapter_file;
use loraine::lora::config::{Bias, LoraInit};
use loraine::network::moments::Shard;
use loraine::quant::format::Float;
use loraine::setting::{as_toml, counted, written};
use loraine::train::checkpoint;
use loraine::train::group::Share;
use loraine::train::output::{Output, same_directory};
use loraine::train::prepare::prepare;
use loraine::train::run::{Resume, Start};
use loraine::train::schedule::{DecayType, Schedule};
use loraine::train::settings::{Method, RunSettings};

use super::args::adapter::adapter_directory;
use super::args::base::Quant4;
use super::args::data::{DataArgs, SPLITS_OF_EVALUATION, SPLITS_OF_RUN, data_sources};
use super::args::device::DeviceArgs;
use super::args::memory::MemoryArgs;
use super::args::model::model_directory;
use super::args::objective::ObjectiveArgs;
use super::next_command::after_training;
use super::ranks::Ranks;
use super::run_view::RunView;
use super::show::listed;
use super::synonyms;

/// Train a LoRA adapter, or a whole model, on a text or data set
#[derive(Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  loraine train --model models/SmolLM2-135M --data notes.txt --out runs/notes
  loraine train --model models/Llama-3.2-1B --data data/ --out runs/a --rank 8 --alpha 16 --epochs 2 --eval-every 100
  loraine train --config runs/a/run.toml --out runs/b        repeat a run
  loraine train --resume runs/a                              resume it from its newest checkpoint
  loraine train --resume runs/a/checkpoints/step-200         resume from an earlier one and discard later ones
  loraine train --resume runs/a --out runs/b                 resume it in a new directory; runs/a stays as it is"
)]
pub struct TrainArgs {
    /// Hugging Face model directory, GGUF file, or owner/name on the hub (config.json, tokenizer.json, safetensors)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Training data: .jsonl, .json, .csv, .tsv, .parquet or .txt, also as .gz or .zst, a directory (train.*, and validation.* for
    /// evaluation), or owner/name on the hub; may be given several times
    #[arg(long, value_name = "FILE|DIR|NAME")]
    data: Vec<PathBuf>,
    /// Directory for the adapter, metrics and checkpoints
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Settings from a TOML file, such as run.toml of an earlier run; flags override them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Replace an earlier run in the output directory
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Resume from the newest checkpoint of --out, or of the run in DIR with its settings, or from checkpoint DIR
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
    /// Check everything, print the memory plan, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print GPU time per operation at the end; slows the run down
    #[arg(long)]
    profile: bool,
    /// Print one JSON object per line: phases, data, plan, steps, evaluations, warnings, saved files, end, error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    data_format: DataArgs,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    steps: StepArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    watch: WatchArgs,
    /// Work of several GPUs: equal, or auto, by the speed that each shows in the first steps
    #[arg(long, value_enum, default_value = "equal", help_heading = "Device")]
    share: Share,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Adapter")]
struct AdapterArgs {
    /// qlora keeps the base in 4 bits, lora in the type of its files, full trains the model itself [default: qlora]
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// 4-bit code of the base, or keep for the packed blocks of a GGUF file as they are [default: nf4]
    #[arg(long, value_enum)]
    quant: Option<Quant4>,
    /// Keep the 4-bit block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// LoRA rank [default: 16]
    #[arg(long)]
    rank: Option<usize>,
    /// LoRA alpha: the update is scaled by alpha / rank [default: 16]
    #[arg(long)]
    alpha: Option<f64>,
    /// LoRA dropout on the adapters' inputs [default: 0]
    #[arg(long)]
    dropout: Option<f64>,
    /// LoRA+: learning rate of the factors B as a multiple of --lr, 16 for instance
    #[arg(long, value_name = "X")]
    loraplus_lr_ratio: Option<f64>,
    /// all-linear, names separated by commas (q_proj,v_proj), or a regular expression [default: all-linear]
    #[arg(long, value_name = "NAMES|REGEX")]
    target_modules: Option<String>,
    /// Rank-stabilized scaling: alpha / sqrt(rank)
    #[arg(long)]
    rslora: bool,
    /// DoRA: train a magnitude of each output beside the factors
    #[arg(long)]
    use_dora: bool,
    /// Rank of the modules whose names end in a match, instead of --rank; may be repeated, the first match counts
    #[arg(long, value_name = "PATTERN=RANK", value_parser = pattern_of::<usize>)]
    rank_pattern: Vec<(String, usize)>,
    /// Alpha of the modules whose names end in a match, instead of --alpha; may be repeated, the first match counts
    #[arg(long, value_name = "PATTERN=ALPHA", value_parser = pattern_of::<f64>)]
    alpha_pattern: Vec<(String, f64)>,
    /// Adapt these layers alone, such as 0-7,10 [default: all]
    #[arg(long, value_name = "LAYERS", value_parser = layer_list)]
    layers_to_transform: Option<LayerList>,
    /// Name of the list of layers, as PEFT's setting; these models have `layers`
    #[arg(long, value_name = "NAME")]
    layers_pattern: Option<String>,
    /// Leave out these modules although --target-modules names them: names separated by commas, or a regular expression
    #[arg(long, value_name = "NAMES|REGEX")]
    exclude_modules: Option<String>,
    /// Train a whole copy of embed_tokens, lm_head or both beside the adapter
    #[arg(long, value_name = "NAMES")]
    modules_to_save: Option<String>,
    /// Train the embedding's rows of these tokens beside the adapter, such as 5,7; of a tied head too
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    trainable_token_indices: Vec<u32>,
    /// Make tokens of these texts and train their rows of embedding and head beside the adapter
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    add_tokens: Vec<String>,
    /// As --add-tokens, for special tokens such as <|im_end|>, which answers do not show
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    add_special_tokens: Vec<String>,
    /// Train the biases of the adapted linear layers, or of all, beside the adapter [default: none]
    #[arg(long, value_enum)]
    bias: Option<Bias>,
    /// Train a bias of each factor B
    #[arg(long)]
    lora_bias: bool,
    /// First values of A: true is PEFT's default (Kaiming uniform) [default: true]
    #[arg(long, value_enum)]
    init_lora_weights: Option<LoraInit>,
    /// Start from this PEFT adapter (a directory, a zip file of one, or owner/name on the hub), with its rank and target modules
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<PathBuf>,
    /// With --method full: start from random weights; the model directory needs only config.json and tokenizer.json
    #[arg(long)]
    from_scratch: bool,
    /// With --method full: type of the saved weights [default: type of the base]
    #[arg(long, value_enum)]
    dtype: Option<Float>,
}

/// The value of `--layers-to-transform`.
#[derive(Clone, Debug, PartialEq)]
struct LayerList(Vec<usize>);

/// Parses numbers and ranges of layers, such as `0-7,10`.
fn layer_list(text: &str) -> Result<LayerList, String> {
    let wrong = || format!("`{text}` is no list of layers; write numbers and ranges, such as 0-7,10");
    let number = |part: &str| part.trim().parse::<usize>().ok().filter(|layer| *layer < 10_000);
    let mut layers = Vec::new();
    for part in text.trim_matches(['[', ']']).split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => layers.extend(first..=last),
            _ => return Err(wrong()),
        }
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(LayerList(layers))
}

/// Parses `PATTERN=VALUE`; the pattern may hold further equals signs.
fn pattern_of<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let parsed = text.rsplit_once('=').and_then(|(pattern, value)| Some((pattern, value.trim().parse().ok()?)));
    let parsed = parsed.filter(|(pattern, _)| !pattern.is_empty());
    let (pattern, value) = parsed.ok_or_else(|| format!("`{text}` must be a pattern, `=` and a number: q_proj=8"))?;
    Ok((pattern.to_owned(), value))
}

impl AdapterArgs {
    /// Returns the first given flag that applies only to an adapter or a 4-bit base.
    fn given_of_an_adapter(&self) -> Option<&'static str> {
        [
            ("--quant", self.quant.is_some()),
            ("--no-double-quant", self.no_double_quant),
            ("--rank", self.rank.is_some()),
            ("--alpha", self.alpha.is_some()),
            ("--dropout", self.dropout.is_some()),
            ("--loraplus-lr-ratio", self.loraplus_lr_ratio.is_some()),
            ("--target-modules", self.target_modules.is_some()),
            ("--rslora", self.rslora),
            ("--use-dora", self.use_dora),
            ("--rank-pattern", !self.rank_pattern.is_empty()),
            ("--alpha-pattern", !self.alpha_pattern.is_empty()),
            ("--layers-to-transform", self.layers_to_transform.is_some()),
            ("--layers-pattern", self.layers_pattern.is_some()),
            ("--exclude-modules", self.exclude_modules.is_some()),
            ("--modules-to-save", self.modules_to_save.is_some()),
            ("--trainable-token-indices", !self.trainable_token_indices.is_empty()),
            ("--add-tokens", !self.add_tokens.is_empty()),
            ("--add-special-tokens", !self.add_special_tokens.is_empty()),
            ("--bias", self.bias.is_some()),
            ("--lora-bias", self.lora_bias),
            ("--init-lora-weights", self.init_lora_weights.is_some()),
            ("--init-adapter", self.init_adapter.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

#[derive(Args)]
#[command(next_help_heading = "Training")]
struct StepArgs {
    /// Examples per micro-batch [default: 4]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Micro-batches per optimizer step (gradient accumulation) [default: 1]
    #[arg(long)]
    grad_accum: Option<usize>,
    /// Devices that a step has micro-batches for: --grad-accum for each, whatever number of GPUs computes them [default: number of GPUs]
    #[arg(long, value_name = "N")]
    world_size: Option<usize>,
    /// Longest sequence in tokens [default: 512, or the model's limit]
    #[arg(long)]
    max_seq_len: Option<usize>,
    /// Number of optimizer steps
    #[arg(long, conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Epochs: passes over the data [default: 1]
    #[arg(long)]
    epochs: Option<f64>,
    /// Peak learning rate [default: 2e-4, and 2e-5 for preferences]
    #[arg(long)]
    lr: Option<f64>,
    /// Learning-rate schedule after warmup [default: linear]
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// Times that --schedule cosine-with-restarts decays [default: 1]
    #[arg(long, value_name = "N")]
    num_cycles: Option<usize>,
    /// Learning rate at the end of --schedule cosine, warmup-stable-decay and polynomial, as a share of --lr [default: 0]
    #[arg(long, value_name = "SHARE")]
    min_lr_ratio: Option<f64>,
    /// Steps of the decay of --schedule warmup-stable-decay [default: a tenth of all steps]
    #[arg(long, value_name = "N")]
    num_decay_steps: Option<usize>,
    /// Form of the decay of --schedule warmup-stable-decay [default: cosine]
    #[arg(long, value_enum)]
    decay_type: Option<DecayType>,
    /// Exponent of --schedule polynomial [default: 1]
    #[arg(long, value_name = "X")]
    power: Option<f64>,
    /// Steps by which --schedule inverse-sqrt is stretched [default: those of the warmup, or 10000]
    #[arg(long, value_name = "N")]
    timescale: Option<usize>,
    /// Steps of linear warmup from 0 [default: 0]
    #[arg(long)]
    warmup_steps: Option<usize>,
    /// Warmup as a share of all steps, such as 0.03, in place of --warmup-steps
    #[arg(long, value_name = "SHARE", conflicts_with = "warmup_steps")]
    warmup_ratio: Option<f64>,
    /// AdamW's decay of the mean of gradients [default: 0.9]
    #[arg(long, value_name = "BETA")]
    adam_beta1: Option<f64>,
    /// AdamW's decay of the mean of squared gradients [default: 0.999]
    #[arg(long, value_name = "BETA")]
    adam_beta2: Option<f64>,
    /// AdamW's constant in the denominator [default: 1e-8]
    #[arg(long, value_name = "EPS")]
    adam_eps: Option<f64>,
    /// AdamW weight decay [default: 0]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Clip gradients to this norm; 0 is off [default: 1]
    #[arg(long)]
    max_grad_norm: Option<f64>,
    /// NEFTune: strength of uniform noise on the embeddings in training, 5 for instance; 0 is off [default: 0]
    #[arg(long, value_name = "X")]
    neftune_noise_alpha: Option<f64>,
    /// Seed of initialization, shuffling and dropout [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the examples in the order of the file
    #[arg(long)]
    no_shuffle: bool,
}

impl StepArgs {
    /// Applies the flags of the schedule.
    fn apply_schedule(&self, s: &mut RunSettings) {
        set(&mut s.schedule, self.schedule);
        set_some(&mut s.num_cycles, self.num_cycles);
        set_some(&mut s.min_lr_ratio, self.min_lr_ratio);
        set_some(&mut s.num_decay_steps, self.num_decay_steps);
        set_some(&mut s.decay_type, self.decay_type);
        set_some(&mut s.power, self.power);
        set_some(&mut s.timescale, self.timescale);
    }
}

#[derive(Args)]
#[command(next_help_heading = "Evaluation and files")]
struct WatchArgs {
    /// Validation data
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Fraction of the data to use for validation, without --eval-data [default: 0.05, at most 64 examples; none of fewer
    /// than 20]
    #[arg(long, value_name = "SHARE")]
    eval_fraction: Option<f64>,
    /// Evaluate every N steps; 0 evaluates only at the start and the end [default: 0]
    #[arg(long, value_name = "N")]
    eval_every: Option<usize>,
    /// End the run after N evaluations in a row without a lower loss, and leave the best step's adapter
    #[arg(long, value_name = "N")]
    early_stopping_patience: Option<usize>,
    /// With early stopping: a loss counts as lower if it is lower by more than this [default: 0]
    #[arg(long, value_name = "LOSS")]
    early_stopping_threshold: Option<f64>,
    /// Leave the adapter of the step with the lowest evaluation loss, not of the last step
    #[arg(long)]
    load_best_model_at_end: bool,
    /// Write a checkpoint every N steps; 0 goes by --save-minutes alone [default: 0]
    #[arg(long, value_name = "N")]
    save_every: Option<usize>,
    /// Write a checkpoint every N minutes; 0 goes by --save-every alone [default: 10]
    #[arg(long, value_name = "N")]
    save_minutes: Option<f64>,
    /// Number of checkpoints to keep [default: 2]
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Log every N steps [default: 1]
    #[arg(long, value_name = "N")]
    log_every: Option<usize>,
    /// Write TensorBoard event files beside metrics.jsonl
    #[arg(long)]
    tensorboard: bool,
}

impl TrainArgs {
    /// Returns the checkpoint to resume from, and the run of the directory after `--resume`.
    fn resume(&self) -> anyhow::Result<(Option<Resume>, Option<PathBuf>)> {
        Ok(match &self.resume {
            None => (None, None),
            Some(None) => (Some(Resume::Newest), None),
            Some(Some(dir)) => match checkpoint::run_of(dir)? {
                (run, false) if self.out.as_ref().is_some_and(|out| !same_directory(out, &run)) => {
                    let newest = checkpoint::newest(&run);
                    let newest =
                        newest.with_context(|| format!("{} holds no checkpoint to resume from", run.display()))?;
                    (Some(Resume::At(newest)), Some(run))
                }
                (run, true) => (Some(Resume::At(dir.clone())), Some(run)),
                (run, false) => (Some(Resume::Newest), Some(run)),
            },
        })
    }

    /// Returns the settings: those of `--config`, else of the resumed run, else the defaults, with every given flag on top.
    fn settings(&self, resumed_run: Option<&Path>) -> anyhow::Result<RunSettings> {
        let recorded = resumed_run.map(|run| run.join("run.toml"));
        let file = self.config.as_ref().or(recorded.as_ref()).map(|path| SettingsFile::read(path)).transpose()?;
        let mut s = file.as_ref().map_or_else(RunSettings::default, |file| file.settings.clone());
        if let Some(run) = resumed_run {
            s.out = run.to_owned();
        }
        set(&mut s.model, self.model.clone());
        if !self.data.is_empty() {
            s.data = self.data.clone().into();
        }
        set(&mut s.out, self.out.clone());
        self.data_format.apply(&mut s.data_format);
        let a = &self.adapter;
        set(&mut s.method, a.method);
        if s.method == Method::Full
            && let Some(flag) = a.given_of_an_adapter()
        {
            anyhow::bail!("{flag} is for an adapter, but --method full trains the model itself");
        }
        s.from_scratch |= a.from_scratch;
        set_some(&mut s.dtype, a.dtype);
        if let Some(quant) = a.quant {
            quant.apply(&mut s);
        }
        s.double_quant &= !a.no_double_quant;
        set(&mut s.rank, a.rank);
        set(&mut s.alpha, a.alpha);
        set(&mut s.dropout, a.dropout);
        set_some(&mut s.loraplus_lr_ratio, a.loraplus_lr_ratio);
        set(&mut s.target_modules, a.target_modules.clone());
        s.rslora |= a.rslora;
        s.use_dora |= a.use_dora;
        set(&mut s.rank_pattern.0, Some(a.rank_pattern.clone()).filter(|given| !given.is_empty()));
        set(&mut s.alpha_pattern.0, Some(a.alpha_pattern.clone()).filter(|given| !given.is_empty()));
        set_some(&mut s.layers_to_transform, a.layers_to_transform.clone().map(|list| list.0));
        set_some(&mut s.layers_pattern, a.layers_pattern.clone());
        set_some(&mut s.exclude_modules, a.exclude_modules.clone());
        set_some(&mut s.modules_to_save, a.modules_to_save.clone());
        let tokens = Some(a.trainable_token_indices.clone()).filter(|tokens| !tokens.is_empty());
        set_some(&mut s.trainable_token_indices, tokens);
        let given = |texts: &[String]| Some(texts.to_vec()).filter(|texts| !texts.is_empty());
        set_some(&mut s.add_tokens, given(&a.add_tokens));
        set_some(&mut s.add_special_tokens, given(&a.add_special_tokens));
        set(&mut s.bias, a.bias);
        s.lora_bias |= a.lora_bias;
        set(&mut s.init_lora_weights, a.init_lora_weights);
        set_some(&mut s.init_adapter, a.init_adapter.clone());
        self.objective.apply(&mut s);
        let t = &self.steps;
        set(&mut s.batch_size, t.batch_size);
        set(&mut s.grad_accum, t.grad_accum);
        set_some(&mut s.world_size, t.world_size);
        set_some(&mut s.max_seq_len, t.max_seq_len);
        set_some(&mut s.steps, t.steps);
        if t.epochs.is_some() {
            (s.steps, s.epochs) = (None, t.epochs);
        }
        if !file.as_ref().is_some_and(|file| file.keys.iter().any(|key| key == "lr")) {
            s.lr = s.objective.default_lr();
        }
        set(&mut s.lr, t.lr);
        t.apply_schedule(&mut s);
        if t.warmup_steps.is_some() {
            s.warmup_ratio = None;
        }
        set(&mut s.warmup_steps, t.warmup_steps);
        set_some(&mut s.warmup_ratio, t.warmup_ratio);
        set(&mut s.adam_beta1, t.adam_beta1);
        set(&mut s.adam_beta2, t.adam_beta2);
        set(&mut s.adam_eps, t.adam_eps);
        set(&mut s.weight_decay, t.weight_decay);
        set(&mut s.max_grad_norm, t.max_grad_norm);
        set_some(&mut s.neftune_noise_alpha, t.neftune_noise_alpha);
        set(&mut s.seed, t.seed);
        s.shuffle &= !t.no_shuffle;
        self.memory.apply(&mut s);
        let w = &self.watch;
        set_some(&mut s.eval_data, w.eval_data.clone());
        set_some(&mut s.eval_fraction, w.eval_fraction);
        set(&mut s.eval_every, w.eval_every);
        set_some(&mut s.early_stopping_patience, w.early_stopping_patience);
        set(&mut s.early_stopping_threshold, w.early_stopping_threshold);
        s.load_best_model_at_end |= w.load_best_model_at_end;
        set(&mut s.save_every, w.save_every);
        set(&mut s.save_minutes, w.save_minutes);
        set(&mut s.keep, w.keep);
        set(&mut s.log_every, w.log_every);
        s.tensorboard |= w.tensorboard;
        let empty = |path: &PathBuf| path.as_os_str().is_empty();
        let needed = [("--model", empty(&s.model)), ("--data", s.data.is_empty()), ("--out", empty(&s.out))];
        let missing: Vec<&str> = needed.iter().filter(|(_, empty)| *empty).map(|(flag, _)| *flag).collect();
        let are = if missing.len() == 1 { "is" } else { "are" };
        anyhow::ensure!(missing.is_empty(), "{} {are} missing", listed(&missing));
        s.check()
            .map_err(|error| file.as_ref().and_then(|file| file.problem(&error, &s)).unwrap_or_else(|| error.into()))?;
        Ok(s)
    }
}

/// Lets the paths of a run's record begin at the directory that it ran in, where they do not lead anywhere from this one.
fn take_from(directory: &Path, settings: &mut RunSettings) {
    let RunSettings { model, data, eval_data, init_adapter, .. } = settings;
    for path in data.iter_mut().chain([model]).chain(eval_data).chain(init_adapter) {
        let there = directory.join(path.as_path());
        if path.is_relative() && !path.as_os_str().is_empty() && !path.exists() && there.exists() {
            *path = there;
        }
    }
}

/// A settings file, such as run.toml of an earlier run.
struct SettingsFile {
    path: PathBuf,
    /// Keys that the file sets.
    keys: Vec<String>,
    settings: RunSettings,
}

fn set<T>(field: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *field = value;
    }
}

fn set_some<T>(field: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *field = flag;
    }
}

impl SettingsFile {
    /// Reads a settings file and ignores the record of a run.toml.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut table: toml::Table = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("{}, line {line}: is not valid TOML: {}", path.display(), e.message())
        })?;
        // A run.toml is in our own words, and its sizes are bytes.
        let record = table.remove("record");
        let directory = record.as_ref().and_then(|record| record.get("directory")?.as_str()).map(PathBuf::from);
        let table = match record {
            Some(_) => table,
            None => synonyms::keys(table).with_context(|| path.display().to_string())?,
        };
        let keys = table.keys().cloned().collect();
        let mut settings = RunSettings::from_table(table).with_context(|| path.display().to_string())?;
        if let Some(directory) = directory {
            take_from(&directory, &mut settings);
        }
        Ok(Self { path: path.to_owned(), keys, settings })
    }

    /// Writes `error` with the file and its key instead of a flag, if it concerns a value of the file that no flag replaced.
    fn problem(&self, error: &Error, now: &RunSettings) -> Option<anyhow::Error> {
        let Error::Setting { key, problem } = error else { return None };
        let value = |settings: &RunSettings| Some(serde_json::to_value(settings).ok()?.get(*key)?.clone());
        let from_file = self.keys.iter().any(|given| given == key) && value(&self.settings) == value(now);
        from_file.then(|| anyhow::anyhow!("{}: {}", self.path.display(), written(problem, as_toml)))
    }
}

pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    let ranks = Ranks::of(&args.device.gpu)?;
    let (resume, resumed_run) = args.resume()?;
    let mut settings = args.settings(resumed_run.as_deref())?;
    if resume.is_some() {
        settings.follow_recorded_date();
    }
    let goes_on = resume.is_some() && resumed_run.as_ref().is_none_or(|run| same_directory(run, &settings.out));
    if ranks.is_first() {
        Output::check(&settings.out, args.overwrite || goes_on || args.dry_run)?;
    }
    if resume.is_none() && ranks.count() > 1 {
        settings.world_size.get_or_insert(ranks.count());
    }
    let model = settings.model.clone();
    settings.model = model_directory(&model, Extent::Everything)?;
    // A zip file is unpacked for the time of the run, and run.toml names the file.
    let zipped = settings.init_adapter.clone().filter(|adapter| adapter.is_file());
    let initial = settings.init_adapter.as_deref().map(adapter_directory).transpose()?;
    if let Some(initial) = &initial {
        settings.init_adapter = Some(initial.dir.clone());
    }
    settings.data = data_sources(&settings.data, SPLITS_OF_RUN)?.into();
    if let Some(eval) = &settings.eval_data {
        settings.eval_data = data_sources(std::slice::from_ref(eval), SPLITS_OF_EVALUATION)?.pop();
    }
    #[cfg(feature = "mpi")]
    if !ranks.is_first() {
        if !args.dry_run {
            return ranks.follow(settings, &args.device);
        }
        ranks.finish();
        return Ok(());
    }
    let mut view = RunView::new(args.json);
    view.phase("reading", "reading the model's files and the data");
    let mut prepared = prepare(settings)?;
    if zipped.is_some() {
        prepared.settings.init_adapter = zipped;
    }
    args.device.cache.apply(&mut prepared.source);
    view.prepared(&prepared);
    if args.dry_run {
        let capabilities = args.device.gpu.open().map_or(Capabilities::BASELINE, |gpu| gpu.capabilities);
        let plan = prepared.plan_shard(capabilities, Shard { rank: 0, size: ranks.count() })?;
        let (kept_layers, layers) = (plan.recompute.kept_layers, prepared.source.config.num_layers);
        view.plan(&plan.ledger(), kept_layers, layers, prepared.trained_parameters(), prepared.steps);
        let steps = counted(prepared.steps as u64, "step");
        view.say(format!("dry run: {steps} planned, nothing was trained or written"));
        view.finish();
        ranks.finish();
        return Ok(());
    }
    view.phase("opening", if ranks.count() > 1 { "opening the GPUs" } else { "opening the GPU" });
    let gpus = ranks.open(args.device.tuning())?;
    for gpu in &gpus {
        view.say(format!("gpu     {} ({}, {})", gpu.adapter.name, gpu.adapter.kind, gpu.adapter.backend));
    }
    let out = prepared.settings.out.clone();
    let start = Start { overwrite: args.overwrite, resume, profile: args.profile };
    let full = prepared.settings.method == Method::Full;
    let next = after_training(&prepared, &model);
    let (outcome, ended) = ranks.train(prepared, gpus, args.share, &start, &mut view)?;
    if !full {
        adapter_file::add_command(&out, &next)?;
    }
    if let Some(profile) = &outcome.profile {
        view.profile(profile);
    }
    view.summary(&outcome, &out, full, &next);
    ranks.finish();
    ended.map_or(Ok(()), |ended| Err(ended.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_patterns_are_read_from_flags() {
        assert_eq!(layer_list("0-2,7"), Ok(LayerList(vec![0, 1, 2, 7])));
        assert_eq!(layer_list("[3, 1]"), Ok(LayerList(vec![1, 3])));
        for wrong in ["", "a", "3-1", "-1", "0-", "0-99999999999"] {
            assert!(layer_list(wrong).is_err(), "{wrong}");
        }
        assert_eq!(pattern_of("(?<=a=)q=8"), Ok(("(?<=a=)q".to_owned(), 8usize)));
        assert!(pattern_of::<usize>("q_proj").is_err() && pattern_of::<usize>("=8").is_err());
        assert_eq!(pattern_of("v=0.5"), Ok(("v".to_owned(), 0.5)));
    }
}
