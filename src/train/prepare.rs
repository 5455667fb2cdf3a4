//! The preparation of a run: settings, model files and data are read and checked before a device is opened.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::budget::{PlanRequest, longest_rows};
use super::checkpoint::Trainable;
use super::comparisons;
use super::diagnosis::{self, Warning, WarningKind};
use super::engine::Engine;
use super::plan::TrainPlan;
use super::provenance::{Provenance, fingerprint_of};
use super::settings::{Method, RunSettings};
use super::teacher;
use crate::data::Example;
use crate::data::batches::{BatchOrder, MicroBatch, hold_out, hold_out_count};
use crate::data::packing::pack;
use crate::data::read::{self, DataReport, Dataset};
use crate::data::settings::DataSettings;
use crate::data::splits::{Split, nothing_to_train};
use crate::data::teacher::TeacherFile;
use crate::data::template::{self, ChatTemplate};
use crate::data::tokenizer::{NewToken, Tokenizer, save_with_tokens};
use crate::gpu::Capabilities;
use crate::hub::base_name;
use crate::infer::text_format;
use crate::lora::adapter_file::{self, LoadedAdapter};
use crate::lora::config::{LoraConfig, TargetModules};
use crate::lora::factors::{self, AdapterTensors};
use crate::lora::targets::{self, LoraModule, Place, is_named};
use crate::model::config::ModelConfig;
use crate::model::model_directory::refuse_links;
use crate::model::modules::last_part;
use crate::model::source::Source;
use crate::model::tensors::parameters;
use crate::network::moments::Shard;
use crate::setting::{
    ADD_SPECIAL_TOKENS, EARLY_STOPPING_PATIENCE, EVAL_DATA, EVAL_FRACTION, LOAD_BEST_MODEL_AT_END, MAX_SEQ_LEN, METHOD,
    OUT, TARGET_MODULES,
};
use crate::{Error, Result, files};

/// The longest sequence where neither the user nor the model says less.
const DEFAULT_SEQ_LEN: usize = 512;

/// The share of the examples that is held out where the user says nothing, the largest number of them, and the fewest examples of which
/// any are held out.
const DEFAULT_HELD_OUT: f64 = 0.05;
const MAX_HELD_OUT: usize = 64;
const MIN_TO_HOLD_OUT: usize = 20;

/// Log-probabilities of both answers of each preference.
#[derive(Clone, Default)]
struct References {
    train: Vec<[f64; 2]>,
    eval: Vec<[f64; 2]>,
}

/// The data of a run's evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// A file of its own.
    Given,
    /// Some of the examples; the others are trained on.
    HeldOut {
        /// Number of examples that are held out.
        examples: usize,
        /// Number of examples of the data.
        of: usize,
    },
    /// None, because there are too few examples to hold some out.
    TooFew {
        /// Number of examples of the data.
        examples: usize,
        /// The smallest number of which some are held out.
        needed: usize,
    },
    /// None, as the settings want it.
    Off,
}

/// A run whose settings, model files and data were read and checked, before a device is opened.
#[derive(Clone)]
pub struct PreparedRun {
    /// The settings; rank, alpha and rslora are those of `init_adapter` where the run starts from one.
    pub settings: RunSettings,
    /// The base model; without tensors where training starts from new weights.
    pub source: Source,
    /// The contents of the adapter's `adapter_config.json`.
    pub lora: LoraConfig,
    /// The linear layers that get an adapter; none where the base itself is trained.
    pub modules: Vec<LoraModule>,
    /// Report on the training data.
    pub data: DataReport,
    /// Report on the evaluation data; `None` where it was held out of the training data, or there is none.
    pub eval: Option<DataReport>,
    /// The data of the evaluations.
    pub validation: Validation,
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// The chat template that the data was written with, if it was, and the tokens with which answers end after training.
    pub(super) template: Option<ChatTemplate>,
    pub(super) ends: Vec<u32>,
    /// The beginning of the first example as a text to continue. None where ids came without a tokenizer.
    pub opening: Option<String>,
    /// The values that the adapter starts with; `None` once the device has them and they can be drawn again.
    initial: Option<AdapterTensors>,
    /// The directory of the run's tokenizer, and the tokens that the run adds to it.
    texts: PathBuf,
    new_tokens: Vec<NewToken>,
    examples: Vec<Example>,
    eval_examples: Vec<Example>,
    /// Log-probabilities of the answers under the model as it was before training, where the objective needs them: of the examples, and
    /// of those to evaluate on.
    references: References,
    /// The teacher, where there is one.
    teacher: Option<TeacherFile>,
    /// The examples of each slot of a batch: one, or under packing as many as fit.
    slots: Vec<Vec<usize>>,
    order: BatchOrder,
}

/// Reads settings, model files and data, and refuses those that cannot work.
///
/// # Errors
/// The first thing that is wrong, by file and field.
pub fn prepare(mut settings: RunSettings) -> Result<PreparedRun> {
    settings.check()?;
    if let (Ok(model), Ok(out)) = (files::canonicalize(&settings.model), files::canonicalize(&settings.out))
        && model == out
    {
        return Err(Error::file(&settings.out, format!("is the model's own directory; choose another for {OUT}")));
    }
    let mut source = match settings.from_scratch {
        true => Source::without_weights(&settings.model)?,
        false => Source::open(&settings.model)?,
    };
    if let Some(adapter) = &settings.init_adapter {
        adapter_file::follow_vocabulary(adapter, &mut source)?;
    }
    refuse_links(&source.dir, settings.method != Method::Full)?;
    if settings.method == Method::Lora && !source.config.quantized.is_empty() {
        let problem = "wants weights in 16 or 32 bits, but the model's files hold them in 4 bits";
        let [asked, fits] = ["lora", "qlora"].map(|method| METHOD.is(method));
        return Err(Error::setting(METHOD, format!("{asked} {problem}; choose {fits}")));
    }
    if settings.keep_blocks {
        source.keep_blocks()?;
    }
    let texts = tokenizer_dir(&settings, &source);
    let new_tokens = new_tokens(&settings, &texts, &mut source)?;
    let LoadedAdapter { config: lora, modules, tensors: initial } =
        initial_adapter(&mut settings, &source, &new_tokens)?;
    let max_seq_len = seq_len_within(settings.max_seq_len, &source.config)?;
    let context = Some(source.config.max_position_embeddings);
    let feedback = settings.objective().feedback();
    let mut format = DataSettings { max_seq_len, context, feedback, ..settings.data_format.clone() };
    if let Some(adapter) = &settings.init_adapter {
        format.follow_adapter(adapter);
    }
    let open = || Tokenizer::from_dir_with(&texts, &source.config, &new_tokens);
    let tokenizer = source.has_tokenizer().then(open).transpose()?;
    let teacher = teacher::open(settings.teacher.as_deref(), tokenizer.as_ref(), source.config.vocab_size)?;
    if let Some(teacher) = &teacher {
        teacher::follow_date(&mut format, &teacher.facts);
    }
    let date = format.template_date.get_or_insert_with(template::now).clone();
    let RunData { examples, report: data, opening, eval_examples, eval, validation } =
        read_data(&settings, &source, tokenizer.as_ref(), &format, teacher.as_ref())?;
    let batch = settings.batch_size;
    let [examples, eval_examples] =
        [examples, eval_examples].map(|examples| comparisons::mismatch(examples, feedback, batch, max_seq_len));
    // Recorded, so that the run may be resumed on another day.
    if data.template_date.is_some() || eval.as_ref().is_some_and(|eval| eval.template_date.is_some()) {
        settings.data_format.template_date = Some(date);
    }
    let used = data.chat_template.is_some();
    let (template, ends) = text_format(&source, tokenizer.as_ref(), &format, used)?;
    if settings.keeps_best() && eval_examples.is_empty() {
        let key =
            if settings.early_stopping_patience.is_some() { EARLY_STOPPING_PATIENCE } else { LOAD_BEST_MODEL_AT_END };
        let problem = format!("{key} needs data to evaluate on: set {EVAL_DATA} or {EVAL_FRACTION}");
        return Err(Error::setting(key, problem));
    }
    if let (Validation::HeldOut { examples, of }, None) = (validation, settings.eval_fraction) {
        // The record of a run holds the share that it was made with, whatever later versions take by default.
        settings.eval_fraction = Some(examples as f64 / of as f64);
    }
    let devices = settings.world_size.unwrap_or(1);
    let per_step = settings.batch_size.saturating_mul(settings.grad_accum).saturating_mul(devices);
    let slots = match format.packing {
        true => pack(&examples, max_seq_len),
        false => (0..examples.len()).map(|i| vec![i]).collect(),
    };
    let order = BatchOrder::new(slots.len(), per_step, settings.seed, settings.shuffle)?;
    let epochs = settings.epochs.unwrap_or(1.0);
    let steps = settings.steps.unwrap_or((epochs * order.steps_per_epoch() as f64).ceil().max(1.0) as usize);
    if let Some(ratio) = settings.warmup_ratio {
        settings.warmup_steps = (ratio * steps as f64).ceil() as usize;
    }
    Ok(PreparedRun {
        settings,
        source,
        lora,
        modules,
        data,
        eval,
        validation,
        steps,
        template,
        ends,
        opening,
        initial: Some(initial),
        texts,
        new_tokens,
        examples,
        eval_examples,
        references: References::default(),
        teacher,
        slots,
        order,
    })
}

/// Names in `target_modules` that no module of the model has, as `q_proj` where queries are a part of a fused layer: PEFT passes over
/// them in silence, and most of the model would stay as it is.
fn missing_targets(lora: &LoraConfig, modules: &[LoraModule]) -> Option<Warning> {
    let TargetModules::Names(names) = &lora.target_modules else { return None };
    let found: Vec<String> = modules.iter().map(LoraModule::name).collect();
    let is_missing = |name: &&String| !found.iter().any(|module| is_named(module, name));
    let missing: Vec<&str> = names.iter().filter(is_missing).map(String::as_str).collect();
    if missing.is_empty() {
        return None;
    }
    let mut trained: Vec<&str> = found.iter().map(|module| last_part(module)).collect();
    trained.sort_unstable();
    trained.dedup();
    let (missing, trained) = (missing.join(", "), trained.join(", "));
    let message = format!(
        "{TARGET_MODULES} names {missing}, which this model does not have; only {trained} are trained; all-linear takes every linear layer"
    );
    Some(Warning::new(WarningKind::MissingTargets, message))
}

/// A choice of modules that leaves out every gated delta rule, which most layers have in place of attention: lists for Llama's layers do so.
fn untrained_linear_attention(config: &ModelConfig, modules: &[LoraModule]) -> Option<Warning> {
    let linear = config.linear_attention.as_ref()?;
    let is_linear = |module: &LoraModule| matches!(module.place, Place::Layer(_, of) if of.is_linear_attention());
    if modules.is_empty() || modules.iter().any(is_linear) {
        return None;
    }
    let (count, all) = (linear.layers.iter().filter(|is| **is).count(), config.num_layers);
    let message = format!(
        "{TARGET_MODULES} leaves out linear_attn, which {count} of {all} layers have in place of attention; all-linear takes every \
         linear layer"
    );
    Some(Warning::new(WarningKind::MissingTargets, message))
}

/// The adapter that training starts from: the one of `init_adapter`, whose rank and scale become those of the settings, or a new one.
/// It is empty where the base itself is trained.
fn initial_adapter(settings: &mut RunSettings, source: &Source, new_tokens: &[NewToken]) -> Result<LoadedAdapter> {
    let config = &source.config;
    if settings.method == Method::Full {
        let refused = match config.wrapper {
            Some(wrapper) => {
                let kind = wrapper.model_type;
                Some(format!("the text part of {kind}: the model would be written without its other parts"))
            }
            None if config.family.fused.is_empty() => None,
            None => Some(format!("{}, whose linear layers are fused", config.family.architecture)),
        };
        if let Some(refused) = refused {
            let [lora, qlora] = ["lora", "qlora"].map(|method| METHOD.is(method));
            let problem = format!("full is not supported for {refused}; choose {lora} or {qlora}");
            return Err(Error::setting(METHOD, problem));
        }
        let tensors = AdapterTensors::default();
        return Ok(LoadedAdapter { config: LoraConfig::default(), modules: Vec::new(), tensors });
    }
    match &settings.init_adapter {
        Some(dir) => {
            let LoadedAdapter { config: lora, modules, tensors } = adapter_file::load_for(dir, source)?;
            // The record of a run holds the settings that it runs with.
            (settings.rank, settings.alpha, settings.rslora) = (lora.r, lora.lora_alpha, lora.use_rslora);
            settings.use_dora = lora.use_dora;
            let base_model_name_or_path = Some(base_name(&settings.model));
            let config = LoraConfig { base_model_name_or_path, lora_dropout: settings.dropout, ..lora };
            Ok(LoadedAdapter { config, modules, tensors })
        }
        None => {
            let mut lora = settings.lora_config();
            train_rows(&mut lora, new_tokens, config);
            let modules = targets::resolve(&lora, config)?;
            let tensors = new_adapter(settings.seed, &lora, &modules, source, new_tokens)?;
            Ok(LoadedAdapter { config: lora, modules, tensors })
        }
    }
}

/// Numbers the tokens that the run adds, and lets the vocabulary of `source` grow by them where the embedding has no rows for them.
fn new_tokens(settings: &RunSettings, texts: &Path, source: &mut Source) -> Result<Vec<NewToken>> {
    let asked = settings.new_tokens().map(|(key, text)| (key, text, key == ADD_SPECIAL_TOKENS));
    let tokens = NewToken::of_texts(texts, asked)?;
    if let Some(last) = tokens.last() {
        let config = &mut source.config;
        let first = last.id as usize + 1 - tokens.len();
        if first > config.vocab_rows {
            let problem = format!(
                "has {first} tokens, more than the {} rows of the embedding, so none can follow them; resize the embedding first",
                config.vocab_rows
            );
            return Err(Error::file(texts.join("tokenizer.json"), problem));
        }
        config.vocab_size = config.vocab_size.max(last.id as usize + 1);
    }
    Ok(tokens)
}

/// Lists the rows of new tokens among those that are trained: of the embedding, and of a head of its own.
fn train_rows(lora: &mut LoraConfig, tokens: &[NewToken], config: &ModelConfig) {
    let of_head = if config.tie_word_embeddings { None } else { Some("lm_head") };
    for name in ["embed_tokens"].into_iter().chain(of_head).filter(|_| !tokens.is_empty()) {
        let rows = &mut lora.trainable_token_indices;
        let at = rows.iter().position(|(of, _)| of == name).unwrap_or_else(|| {
            rows.push((name.to_owned(), Vec::new()));
            rows.len() - 1
        });
        rows[at].1.extend(tokens.iter().map(|token| token.id));
    }
}

/// The first values of an adapter that training starts with: draws of the seed, and copies from the base.
fn new_adapter(
    seed: u64,
    lora: &LoraConfig,
    modules: &[LoraModule],
    source: &Source,
    tokens: &[NewToken],
) -> Result<AdapterTensors> {
    let mut tensors = factors::init(modules, seed, lora.init_lora_weights);
    factors::copy_from_base(&mut tensors, modules, source, tokens.first().map(|token| token.id))?;
    Ok(tensors)
}

/// The chat template of the data, if `used`, and the tokens with which answers end after training.
fn text_format(
    source: &Source,
    tokenizer: Option<&Tokenizer>,
    format: &DataSettings,
    used: bool,
) -> Result<(Option<ChatTemplate>, Vec<u32>)> {
    let Some(tokenizer) = tokenizer else { return Ok((None, Vec::new())) };
    let load = || ChatTemplate::load(&source.dir, format.chat_template.as_deref(), tokenizer.special_tokens()?);
    let template = if used { load()? } else { None };
    let ends = text_format::trained_ends(tokenizer, template.as_ref())?;
    Ok((template, ends))
}

/// The directory of the run's tokenizer.
fn tokenizer_dir(settings: &RunSettings, source: &Source) -> PathBuf {
    let adapters: Vec<PathBuf> = settings.init_adapter.iter().cloned().collect();
    text_format::tokenizer_dir(&source.dir, &source.config, &adapters)
}

/// The examples of a run, to train on and to evaluate on.
struct RunData {
    examples: Vec<Example>,
    report: DataReport,
    opening: Option<String>,
    eval_examples: Vec<Example>,
    /// None where the examples to evaluate on were held out of the others.
    eval: Option<DataReport>,
    validation: Validation,
}

/// Reads the training data, and the held-out data from the settings' file, from the directory's `valid` split, or as a fraction of the
/// training data.
fn read_data(
    settings: &RunSettings,
    source: &Source,
    tokenizer: Option<&Tokenizer>,
    format: &DataSettings,
    teacher: Option<&TeacherFile>,
) -> Result<RunData> {
    let config = &source.config;
    let read =
        |sources: &[PathBuf], split: Split| read::read_sources(sources, split, tokenizer, format, config.vocab_size);
    let missing = |sources: &[PathBuf]| nothing_to_train(sources.first().map_or(Path::new(""), PathBuf::as_path));
    let Dataset { examples, report } = read(&settings.data, Split::Train)?.ok_or_else(|| missing(&settings.data))?;
    let examples = comparisons::fitting(examples, &report, settings.objective)?;
    teacher::check(teacher, &examples, &report)?;
    let opening = tokenizer.zip(examples.first()).and_then(|(tokenizer, first)| opening(tokenizer, first));
    let held_out = match &settings.eval_data {
        Some(path) => Some(read::read_to_evaluate(std::slice::from_ref(path), tokenizer, format, config.vocab_size)?),
        None => read(&settings.data, Split::Valid)?,
    };
    if let Some(set) = held_out {
        let eval_examples = comparisons::fitting(set.examples, &set.report, settings.objective)?;
        teacher::check(teacher, &eval_examples, &set.report)?;
        let eval = Some(set.report);
        return Ok(RunData { examples, report, opening, eval_examples, eval, validation: Validation::Given });
    }
    let count = examples.len();
    let (examples, eval_examples) = match settings.eval_fraction {
        Some(fraction) if fraction > 0.0 => hold_out(examples, fraction, settings.seed)?,
        Some(_) => (examples, Vec::new()),
        None => hold_out_count(examples, held_out_by_default(count), settings.seed),
    };
    let validation = match (eval_examples.len(), settings.eval_fraction) {
        (0, None) => Validation::TooFew { examples: count, needed: MIN_TO_HOLD_OUT },
        (0, Some(_)) => Validation::Off,
        (held, _) => Validation::HeldOut { examples: held, of: count },
    };
    Ok(RunData { examples, report, opening, eval_examples, eval: None, validation })
}

/// The number of examples that are held out of `count` where the user says nothing.
fn held_out_by_default(count: usize) -> usize {
    match count {
        0..MIN_TO_HOLD_OUT => 0,
        _ => ((count as f64 * DEFAULT_HELD_OUT).round() as usize).clamp(1, MAX_HELD_OUT),
    }
}

/// A text to continue, for trying what was learned: the example's prompt if it is a short line, else its first words.
fn opening(tokenizer: &Tokenizer, example: &Example) -> Option<String> {
    const WORDS: usize = 6;
    const LONGEST: usize = 160;
    let ids = &example.input_ids;
    let prompt = example.trained.iter().take_while(|trained| !**trained).count();
    let prompt = tokenizer.decode(&ids[..prompt]).ok()?;
    let prompt = prompt.trim();
    if !prompt.is_empty() && prompt.len() <= LONGEST && !prompt.contains(char::is_control) {
        return Some(prompt.to_owned());
    }
    let text = tokenizer.decode(&ids[..ids.len().min(8 * WORDS)]).ok()?;
    let whole = |c: &char| !c.is_control() && *c != char::REPLACEMENT_CHARACTER;
    let words: Vec<&str> = text.split_whitespace().take(WORDS).collect();
    let words: String = words.join(" ").chars().filter(whole).take(LONGEST).collect();
    Some(words).filter(|words| !words.is_empty())
}

/// The longest sequence of a run: `asked`, or the default where it is None.
///
/// # Errors
/// More than the model has positions for.
pub fn seq_len_within(asked: Option<usize>, config: &ModelConfig) -> Result<usize> {
    let has = config.max_position_embeddings;
    match asked {
        Some(asked) if asked > has => Err(Error::setting(
            MAX_SEQ_LEN,
            format!(
                "{MAX_SEQ_LEN} is {asked}, but the model has {has} positions (max_position_embeddings of its config.json)"
            ),
        )),
        Some(asked) => Ok(asked),
        None => Ok(DEFAULT_SEQ_LEN.min(has)),
    }
}

impl PreparedRun {
    /// The run's memory plan, refused if it exceeds the budget of the settings.
    ///
    /// # Errors
    /// A plan over the budget or over a limit of the device; the error names the longest sequence that fits.
    pub fn plan(&self, capabilities: Capabilities) -> Result<TrainPlan> {
        self.plan_shard(capabilities, Shard::default())
    }

    /// The memory plan of one of the devices that train together.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn plan_shard(&self, capabilities: Capabilities, shard: Shard) -> Result<TrainPlan> {
        let length = |slot: &Vec<usize>| slot.iter().map(|i| self.examples[*i].tokens()).sum::<usize>();
        let rows = self.slots.iter().map(length).chain(self.eval_examples.iter().map(Example::tokens));
        let max_rows = longest_rows(rows, self.settings.batch_size).0;
        let examples = self.examples.iter().chain(&self.eval_examples);
        let max_positions = longest_rows(examples.map(Example::longest), 1).1;
        let stored = |name: &str| self.source.stored(name);
        PlanRequest {
            settings: &self.settings,
            config: &self.source.config,
            modules: &self.modules,
            stored: &stored,
            max_rows,
            max_positions,
            distillation: self.teacher.as_ref().and_then(|teacher| self.settings.distillation(teacher.top_k)),
            capabilities,
            shard,
        }
        .plan_within_budget()
    }

    /// The trained part of the model, for the files of the run.
    pub(super) fn trainable(&self) -> Trainable<'_> {
        match self.settings.method {
            Method::Full => Trainable::Base { base: &self.settings.model },
            Method::Lora | Method::Qlora => Trainable::Adapter { config: &self.lora, modules: &self.modules },
        }
    }

    /// The values that the adapter starts with.
    ///
    /// # Errors
    /// A tensor of the base that cannot be read.
    pub(super) fn initial(&self) -> Result<Cow<'_, AdapterTensors>> {
        match &self.initial {
            Some(initial) => Ok(Cow::Borrowed(initial)),
            None => new_adapter(self.settings.seed, &self.lora, &self.modules, &self.source, &self.new_tokens)
                .map(Cow::Owned),
        }
    }

    /// Frees the first values of a new adapter, which only a run that starts anew needs again. Those of a given adapter stay: its files
    /// may be replaced by the run.
    pub(super) fn release_initial(&mut self) {
        if self.settings.init_adapter.is_none() {
            self.initial = None;
        }
    }

    /// Writes the tokenizer, the chat template and the end tokens of the run into `dir`.
    pub(super) fn save_text_format(&self, dir: &Path) -> Result<()> {
        if !self.source.has_tokenizer() {
            return Ok(());
        }
        text_format::save(dir, &self.texts, self.template.as_ref(), &self.ends)?;
        match self.new_tokens.is_empty() {
            true => Ok(()),
            false => save_with_tokens(&self.texts, dir, &self.new_tokens),
        }
    }

    /// Fingerprint of the held-out examples.
    pub(super) fn held_out_fingerprint(&self) -> String {
        fingerprint_of(&self.eval_examples)
    }

    pub(super) fn provenance(&self) -> Result<Provenance> {
        let teacher = self.teacher.as_ref().map(TeacherFile::fingerprint);
        Provenance::new(&self.settings, &self.examples, &self.slots, &self.source.tensors, self.steps, teacher)
    }

    /// Optimizer steps of one pass over the data.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.steps_per_epoch()
    }

    /// The number of trained parameters.
    pub fn trained_parameters(&self) -> u64 {
        match self.settings.method {
            Method::Full => parameters(&self.source.config),
            Method::Lora | Method::Qlora => factors::parameters(&self.modules),
        }
    }

    /// Hints at settings that seldom work.
    pub fn hints(&self) -> Vec<Warning> {
        let parameters = parameters(&self.source.config);
        let mut hints = diagnosis::hints(&self.settings, parameters, self.examples.len(), self.steps);
        hints.extend(missing_targets(&self.lora, &self.modules));
        hints.extend(untrained_linear_attention(&self.source.config, &self.modules));
        hints
    }

    /// The held-out examples in micro-batches, in their order.
    ///
    /// # Errors
    /// A teacher's file that cannot be read.
    pub(super) fn eval_batches(&self) -> Result<Vec<MicroBatch>> {
        let all: Vec<usize> = (0..self.eval_examples.len()).collect();
        let batch = |chosen: &[usize]| self.micro_batch(&self.eval_examples, &self.references.eval, chosen);
        all.chunks(self.settings.batch_size).map(batch).collect()
    }

    /// The micro-batches of the optimizer step `step`, counted from 0.
    ///
    /// # Errors
    /// A teacher's file that cannot be read.
    pub(super) fn micro_batches(&mut self, step: usize) -> Result<Vec<MicroBatch>> {
        let chosen = self.order.batch_for_step(step).to_vec();
        let examples = |slots: &[usize]| slots.iter().flat_map(|slot| &self.slots[*slot]).copied().collect::<Vec<_>>();
        let batch = |slots: &[usize]| self.micro_batch(&self.examples, &self.references.train, &examples(slots));
        chosen.chunks(self.settings.batch_size).map(batch).collect()
    }

    fn micro_batch(&self, examples: &[Example], references: &[[f64; 2]], chosen: &[usize]) -> Result<MicroBatch> {
        let whole = self.settings.objective().preference().is_some_and(|preference| preference.learns_prompts());
        let mut batch = MicroBatch::default();
        for &i in chosen {
            batch.add(&examples[i], whole, references.get(i).copied().unwrap_or_default());
            if let Some(teacher) = &self.teacher {
                teacher.add_rows(&mut batch, &examples[i], self.settings.temperature.unwrap_or(1.0))?;
            }
        }
        Ok(batch)
    }

    /// Computes the log-probabilities of all answers with the model in `engine`, which is the one before training, unless they are known
    /// or not needed. Batches are those of the data's order, so that a resumed run finds the same values.
    ///
    /// # Errors
    /// A failing device.
    pub(super) async fn add_references(
        &mut self,
        engine: &mut Engine,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let needed = self.settings.objective().preference().is_some_and(|preference| preference.needs_reference());
        if !needed || !self.references.train.is_empty() {
            return Ok(());
        }
        let size = self.settings.batch_size;
        let mut used = vec![false; self.examples.len()];
        for step in 0..self.steps.min(self.order.steps_per_epoch()) {
            for slot in self.order.batch_for_step(step) {
                self.slots[*slot].iter().for_each(|example| used[*example] = true);
            }
        }
        let chunks = self.examples.chunks(size).zip(used.chunks(size).map(|chunk| chunk.contains(&true)));
        let eval = self.eval_examples.chunks(size).map(|chunk| (chunk, true));
        let (total, mut done) = (chunks.len() + eval.len(), 0);
        let mut found = [Vec::new(), Vec::new()];
        for (at, (chunk, is_used)) in chunks.map(|chunk| (0, chunk)).chain(eval.map(|chunk| (1, chunk))) {
            progress(done, total);
            done += 1;
            match is_used {
                true => found[at].extend(engine.answer_logps(&MicroBatch::from_examples(chunk), true).await?),
                false => found[at].resize(found[at].len() + chunk.len(), [0.0; 2]),
            }
        }
        let [train, eval] = found;
        self.references = References { train, eval };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_examples_is_held_out_within_bounds() {
        let cases = [(1, 0), (19, 0), (20, 1), (29, 1), (30, 2), (100, 5), (1000, 50), (1280, 64), (1_000_000, 64)];
        for (count, held) in cases {
            assert_eq!(held_out_by_default(count), held, "{count} examples");
            if held > 0 {
                // The recorded share gives as many again.
                let recorded = held as f64 / count as f64;
                assert_eq!((count as f64 * recorded).round() as usize, held);
            }
        }
    }
}
