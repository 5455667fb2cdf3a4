//! A whole run: data and model checked, memory planned, the base loaded, the steps made, and the files left behind.
//! Whoever shows it (terminal, page) listens to its events.

use std::path::{Path, PathBuf};

use super::budget::{longest_rows, plan_within_budget};
use super::checkpoint::{self, Checkpoint, RunState, Subject};
use super::engine::Engine;
use super::observer::{Observer, Speed};
use super::origin::Origin;
use super::output::{EvalMetrics, Output, RunRecord, StepMetrics};
use super::plan::TrainPlan;
use super::settings::{Method, RunSettings};
use super::values::Values;
use crate::data::Example;
use crate::data::batches::{BatchOrder, MicroBatch, hold_out};
use crate::data::packing::pack;
use crate::data::read::{self, DataReport, Dataset};
use crate::data::settings::DataSettings;
use crate::data::tokenizer::Tokenizer;
use crate::gpu::{Capabilities, Gpu, Ledger, Profile};
use crate::hub::base_name;
use crate::lora::adapter_file::{self, LoadedAdapter};
use crate::lora::config::LoraConfig;
use crate::lora::factors::{self, AdapterTensors};
use crate::lora::targets::{self, LoraModule};
use crate::model::config::ModelConfig;
use crate::model::source::Source;
use crate::model::tensors::{EMBEDDING, parameters};
use crate::setting::{MAX_SEQ_LEN, METHOD, OUT, RESUME};
use crate::{Error, Result, files};

/// Longest sequence where neither the user nor the model says less.
const DEFAULT_SEQ_LEN: usize = 512;

/// What happens in a run, as it happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    Planned {
        ledger: &'a Ledger,
        kept_layers: usize,
        layers: usize,
        trained_parameters: u64,
        steps: usize,
    },
    Resumed {
        step: usize,
        from: &'a Path,
        /// Settings that were others up to here, so that the rest is not that of one uninterrupted run.
        changed: &'a [String],
    },
    Loading {
        done: u64,
        total: u64,
    },
    Step {
        metrics: &'a StepMetrics,
        steps: usize,
    },
    /// Loss or gradient were not finite; the step changed nothing.
    Skipped {
        step: usize,
    },
    Evaluated(&'a EvalMetrics),
    Saved(&'a Path),
}

/// Which checkpoint of its directory a run goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    Newest,
    /// This one; later ones are given up.
    At(PathBuf),
}

/// How a run starts in its directory.
#[derive(Clone, Debug, Default)]
pub struct Start {
    pub overwrite: bool,
    pub resume: Option<Resume>,
    pub profile: bool,
}

/// What whoever watches a run wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Save where the run stands, and ask again before the next step: who pauses a run saves it first.
    Save,
    /// Save and end.
    Stop,
}

/// Watches a run that nobody stops.
pub async fn to_the_end() -> Control {
    Control::Continue
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub step: usize,
    pub interrupted: bool,
    pub last_eval: Option<EvalMetrics>,
    pub first_eval: Option<EvalMetrics>,
    pub profile: Option<Profile>,
    pub loss_svg: PathBuf,
}

/// Everything that can be known and refused before a device is opened.
pub struct PreparedRun {
    pub settings: RunSettings,
    /// Without tensors where training starts from new weights.
    pub source: Source,
    pub lora: LoraConfig,
    pub modules: Vec<LoraModule>,
    pub data: DataReport,
    pub eval: Option<DataReport>,
    pub steps: usize,
    initial: AdapterTensors,
    examples: Vec<Example>,
    eval_examples: Vec<Example>,
    /// Which examples make each slot of a batch: one, or under packing as many as fit.
    slots: Vec<Vec<usize>>,
    order: BatchOrder,
}

/// Reads settings, model files and data, and refuses what cannot work.
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
    let source = match settings.from_scratch {
        true => Source::without_weights(&settings.model)?,
        false => Source::open(&settings.model)?,
    };
    let config = &source.config;
    if settings.method == Method::Lora && config.quantization.is_some() {
        let problem = "wants weights in 16 or 32 bits, but the model's files hold them in 4";
        let [asked, fits] = ["lora", "qlora"].map(|method| METHOD.is(method));
        return Err(Error::setting(METHOD, format!("{asked} {problem}; choose {fits}")));
    }
    let (lora, modules, initial) = match &settings.init_adapter {
        _ if settings.method == Method::Full => (LoraConfig::default(), Vec::new(), AdapterTensors::default()),
        Some(dir) => {
            let LoadedAdapter { config: lora, modules, tensors } = adapter_file::load(dir, config)?;
            let base_model_name_or_path = Some(base_name(&settings.model));
            // What the run is recorded with is what it runs with.
            (settings.rank, settings.alpha, settings.rslora) = (lora.r, lora.lora_alpha, lora.use_rslora);
            (LoraConfig { base_model_name_or_path, lora_dropout: settings.dropout, ..lora }, modules, tensors)
        }
        None => {
            let lora = settings.lora_config();
            let modules = targets::resolve(&lora, config)?;
            let tensors = factors::init(&modules, config, settings.seed, lora.init_lora_weights);
            (lora, modules, tensors)
        }
    };
    let max_seq_len = seq_len_within(settings.max_seq_len, config)?;
    let tokenizer = source.has_tokenizer().then(|| Tokenizer::from_dir(&source.dir, config)).transpose()?;
    let format = DataSettings { max_seq_len, ..settings.data_format.clone() };
    let read = |path: &Path| read::read_with(path, tokenizer.as_ref(), &format, config.vocab_size);
    let Dataset { examples, report: data } = read(&settings.data)?;
    let valid = if files::is_dir(&settings.data) {
        read::read_split_with(&settings.data, "valid", tokenizer.as_ref(), &format, config.vocab_size)?
    } else {
        None
    };
    let (examples, eval_examples, eval) = match (&settings.eval_data, valid) {
        (Some(path), _) => read(path).map(|set| (examples, set.examples, Some(set.report)))?,
        (None, Some(set)) => (examples, set.examples, Some(set.report)),
        (None, None) if settings.eval_fraction > 0.0 => {
            let (examples, held_out) = hold_out(examples, settings.eval_fraction, settings.seed)?;
            (examples, held_out, None)
        }
        (None, None) => (examples, Vec::new(), None),
    };
    let per_step = settings.batch_size.saturating_mul(settings.grad_accum);
    let slots = match format.packing {
        true => pack(&examples, max_seq_len),
        false => (0..examples.len()).map(|i| vec![i]).collect(),
    };
    let order = BatchOrder::new(slots.len(), per_step, settings.seed, settings.shuffle)?;
    let epochs = settings.epochs.unwrap_or(1.0);
    let steps = settings.steps.unwrap_or((epochs * order.steps_per_epoch() as f64).ceil().max(1.0) as usize);
    Ok(PreparedRun {
        settings,
        source,
        lora,
        modules,
        data,
        eval,
        steps,
        initial,
        examples,
        eval_examples,
        slots,
        order,
    })
}

/// The longest sequence: what was asked for, which the model must have positions for, or the default.
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
    pub fn plan(&self, capabilities: Capabilities) -> Result<TrainPlan> {
        let length = |slot: &Vec<usize>| slot.iter().map(|i| self.examples[*i].input_ids.len()).sum::<usize>();
        let rows = self.slots.iter().map(length).chain(self.eval_examples.iter().map(|e| e.input_ids.len()));
        let max_rows = longest_rows(rows, self.settings.batch_size).0;
        let examples = self.examples.iter().chain(&self.eval_examples);
        let max_positions = longest_rows(examples.map(|e| e.input_ids.len()), 1).1;
        let stored = |name: &str| self.source.stored(name);
        plan_within_budget(
            &self.settings,
            &self.source.config,
            &self.modules,
            stored,
            max_rows,
            max_positions,
            capabilities,
        )
    }

    fn subject(&self) -> Subject<'_> {
        match self.settings.method {
            Method::Full => Subject::Base { base: &self.settings.model },
            Method::Lora | Method::Qlora => Subject::Adapter { config: &self.lora, modules: &self.modules },
        }
    }

    fn origin(&self) -> Result<Origin> {
        Origin::new(&self.settings, &self.examples, &self.slots, &self.source.tensors, self.steps)
    }

    pub fn trained_parameters(&self) -> u64 {
        match self.settings.method {
            Method::Full => parameters(&self.source.config),
            Method::Lora | Method::Qlora => Values::Adapter(self.initial.clone()).parameters(),
        }
    }

    fn micro_batches(&mut self, step: usize) -> Vec<MicroBatch> {
        let (examples, slots) = (&self.examples, &self.slots);
        let chosen = self.order.batch_for_step(step).chunks(self.settings.batch_size);
        let batch = |chosen: &[usize]| {
            MicroBatch::from_examples(chosen.iter().flat_map(|slot| &slots[*slot]).map(|i| &examples[*i]))
        };
        chosen.map(batch).collect()
    }
}

/// Makes the run. `control` is asked after each step; the run waits for its answer.
///
/// # Errors
/// A full disk, a failing device, numbers that stay broken: what was saved before stays whole.
pub async fn run(
    mut prepared: PreparedRun,
    gpu: Gpu,
    start: &Start,
    mut control: impl AsyncFnMut() -> Control,
    mut listen: impl FnMut(Event<'_>),
) -> Result<Outcome> {
    let out = prepared.settings.out.clone();
    let origin = prepared.origin()?;
    let resumed = match &start.resume {
        Some(resume) => {
            let missing =
                || Error::file(&out, format!("holds no checkpoint to resume from; start anew without {RESUME}"));
            let dir = match resume {
                Resume::Newest => checkpoint::newest(&out).ok_or_else(missing)?,
                Resume::At(dir) => dir.clone(),
            };
            let found =
                checkpoint::load(&dir, &prepared.source.config, prepared.subject(), prepared.settings.optim.moments())?;
            let changed = found.state.origin.goes_on_as(&origin).map_err(|problem| Error::file(&dir, problem))?;
            Some((dir, found, changed))
        }
        None => None,
    };
    let plan = prepared.plan(gpu.capabilities)?;
    let trained_parameters = prepared.trained_parameters();
    let ledger = plan.ledger();
    listen(Event::Planned {
        ledger: &ledger,
        kept_layers: plan.recompute.kept_layers,
        layers: prepared.source.config.num_layers,
        trained_parameters,
        steps: prepared.steps,
    });
    let mut record = RunRecord {
        loraine: env!("CARGO_PKG_VERSION").to_owned(),
        gpu: gpu.adapter.name.clone(),
        driver: format!("{} {}", gpu.adapter.driver, gpu.adapter.driver_info),
        backend: gpu.adapter.backend.clone(),
        trained_parameters,
        gpu_bytes: ledger.total(),
        kernels: Vec::new(),
        data: prepared.data.clone(),
        eval: prepared.eval.clone(),
    };
    let loading = |done, total| listen(Event::Loading { done, total });
    let mut engine = match prepared.settings.from_scratch {
        false => Engine::open(gpu, plan, &prepared.source, loading).await?,
        true => Engine::from_scratch(gpu, plan, prepared.settings.seed).await?,
    };
    record.kernels = engine.plan.autotune.lines();
    // Only now, so that a model that cannot be loaded neither replaces an earlier run nor leaves a trace of this one.
    let mut output = Output::open(&out, start.overwrite, resumed.as_ref().map(|(_, found, _)| found.state.step))?;
    output.write_run(&prepared.settings, &record)?;
    if prepared.settings.tensorboard {
        output.add_tensorboard()?;
    }
    engine.profile = start.profile.then(Profile::default);
    let mut state = RunState { step: 0, tokens: 0, unlogged: Vec::new(), origin };
    match &resumed {
        Some((dir, found, changed)) => {
            checkpoint::remove_after(&out, found.state.step)?;
            engine.resume(found.state.step, &found.values, &found.moments);
            state = RunState { origin: state.origin, ..found.state.clone() };
            listen(Event::Resumed { step: state.step, from: dir, changed });
        }
        None => engine.write_adapter(&prepared.initial),
    }

    let mut observer = Observer {
        output: &mut output,
        listen: &mut listen,
        settings: prepared.settings.clone(),
        steps: prepared.steps,
        gpu_bytes: engine.buffers.ledger().total(),
        tokens: state.tokens,
        unlogged: state.unlogged.clone(),
        speed: Speed::starting_now(),
        skipped_in_a_row: 0,
    };
    let eval_batches: Vec<MicroBatch> =
        prepared.eval_examples.chunks(prepared.settings.batch_size).map(MicroBatch::from_examples).collect();
    let mut outcome = Outcome {
        step: state.step,
        interrupted: false,
        last_eval: None,
        first_eval: None,
        profile: None,
        loss_svg: PathBuf::new(),
    };
    if !eval_batches.is_empty() && state.step == 0 {
        outcome.first_eval = Some(observer.evaluate(&mut engine, &eval_batches, 0).await?);
    }

    let optimizer = prepared.settings.optimizer();
    let every = |count: usize, step: usize| count > 0 && step.is_multiple_of(count);
    while state.step < prepared.steps {
        let micro_batches = prepared.micro_batches(state.step);
        let settings = &prepared.settings;
        let lr = settings.lr * settings.schedule.factor(state.step, settings.warmup_steps, prepared.steps);
        let result = engine.step(&micro_batches, &optimizer, lr, settings.seed).await?;
        state.step += 1;
        if let Some(result) = result {
            observer.step(result)?;
        }
        let mut wish = control().await;
        let due = every(settings.save_every, state.step);
        let evaluate =
            !eval_batches.is_empty() && (every(settings.eval_every, state.step) || state.step == prepared.steps);
        if due || evaluate || wish != Control::Continue {
            observer.drain(&mut engine).await?;
        }
        if evaluate {
            outcome.last_eval = Some(observer.evaluate(&mut engine, &eval_batches, state.step).await?);
        }
        // After a skipped step the state may be broken for good, and must not push the last good checkpoint out.
        if (due && observer.skipped_in_a_row == 0) || wish != Control::Continue {
            state.tokens = observer.tokens;
            state.unlogged = observer.unlogged.clone();
            let state = state.clone();
            let checkpoint =
                Checkpoint { state, values: engine.read_values().await?, moments: engine.read_moments().await? };
            let place = checkpoint::save(&out, prepared.subject(), &checkpoint, prepared.settings.keep)?;
            (observer.listen)(Event::Saved(&place));
        }
        while wish == Control::Save {
            wish = control().await;
            observer.speed = Speed::starting_now();
        }
        if wish == Control::Stop && state.step < prepared.steps {
            outcome.interrupted = true;
            break;
        }
    }
    observer.drain(&mut engine).await?;
    let float = prepared.settings.dtype.unwrap_or_else(|| prepared.source.stored(EMBEDDING));
    prepared.subject().save(&out, &engine.read_values().await?, float)?;
    (observer.listen)(Event::Saved(&out));
    outcome.step = state.step;
    outcome.profile = engine.profile.take();
    outcome.loss_svg = output.draw_loss()?;
    Ok(outcome)
}
