//! A whole run: memory planned, the base loaded, the steps made, and the files left behind. A watcher (terminal or page) receives its
//! events and gives its commands.

use std::path::{Path, PathBuf};

use web_time::Instant;

use super::checkpoint::{self, BestEvaluation, Checkpoint, RunState, Trainable};
use super::engine::Engine;
use super::event::{Control, Event, Outcome, Phase};
use super::group::Group;
use super::joining::check_same;
use super::objective::Objective;
use super::observer::{Observer, Speed};
use super::output::{Continued, EvalMetrics, Output, RunRecord, same_directory};
use super::prepare::PreparedRun;
use super::provenance::Provenance;
use super::settings::Method;
use super::values::TrainedValues;
use crate::data::batches::MicroBatch;
use crate::gpu::{Gpu, GpuOptions, Profile};
use crate::lora::adapter_file;
use crate::model::tensors::{EMBEDDING, parameters};
use crate::network::moments::Shard;
use crate::setting::RESUME;
use crate::{Error, Result, files};

/// The checkpoint that a run resumes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest one in the run's directory.
    Newest,
    /// The one in this directory. Those of later steps are removed.
    At(PathBuf),
}

/// The way in which a run starts in its directory.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// True to replace a run that the directory holds already.
    pub overwrite: bool,
    /// The checkpoint to go on from; `None` starts at step 0.
    pub resume: Option<Resume>,
    /// True to measure the GPU time of each operation, for [`Outcome::profile`].
    pub profile: bool,
}

/// A device may be lost so often on end without a new checkpoint in between.
const MAX_LOSSES: usize = 3;

/// The progress of a run over its attempts, as far as the next attempt has to know it after a lost device.
#[derive(Default)]
struct Progress {
    /// True once the output directory holds this run.
    opened: bool,
    /// Optimizer steps done.
    step: usize,
    /// The step that the last attempt began at.
    first_step: usize,
    first_eval: Option<EvalMetrics>,
}

impl Progress {
    /// The way in which the next attempt starts: from the newest checkpoint, or anew where there is none.
    fn next_start(&self, start: Start, out: &Path) -> Start {
        if !self.opened {
            return start;
        }
        match checkpoint::newest(out) {
            Some(_) => Start { overwrite: false, resume: Some(Resume::Newest), ..start },
            // Anew, or from the checkpoint of another run.
            None => Start { overwrite: true, ..start },
        }
    }
}

/// Trains as the first rank of `group`, whose other ranks are in [`super::worker::work`]. A lost device ends the run. See [`run`].
///
/// # Errors
/// As [`run`], or a rank that has ended.
pub async fn run_first(
    mut prepared: PreparedRun,
    gpu: Gpu,
    mut group: Group,
    start: &Start,
    mut control: impl AsyncFnMut() -> Control,
    mut listen: impl FnMut(Event<'_>),
) -> Result<Outcome> {
    // Before anything is written.
    check_same(&mut group, &prepared)?;
    let _lock = files::lock_directory(&prepared.settings.out)?;
    let mut progress = Progress::default();
    let outcome = attempt(&mut prepared, gpu, Some(group), start, &mut control, &mut listen, &mut progress).await?;
    Ok(Outcome { first_eval: progress.first_eval, ..outcome })
}

/// Trains. `control` is asked after each step, and the run waits for its answer; `listen` receives the events.
///
/// # Errors
/// A full disk, a failing device, numbers that stay broken: checkpoints that were saved before stay whole.
pub async fn run(
    mut prepared: PreparedRun,
    mut gpu: Gpu,
    start: &Start,
    mut control: impl AsyncFnMut() -> Control,
    mut listen: impl FnMut(Event<'_>),
) -> Result<Outcome> {
    let out = prepared.settings.out.clone();
    let (options, mut start) = (gpu.options().clone(), start.clone());
    let _lock = files::lock_directory(&out)?;
    let (mut losses, mut resumed_at) = (0, None);
    let mut progress = Progress::default();
    loop {
        let watch = gpu.loss_watch();
        let result = attempt(&mut prepared, gpu, None, &start, &mut control, &mut listen, &mut progress).await;
        let error = match result {
            Ok(outcome) => return Ok(Outcome { first_eval: progress.first_eval, ..outcome }),
            Err(error) => error,
        };
        // Memory or a command that is refused on a lost device is a loss too.
        let Some(reason) = watch.reason() else { return Err(error) };
        if !matches!(error, Error::Gpu(_)) {
            return Err(error);
        }
        losses = if resumed_at == Some(progress.first_step) { losses + 1 } else { 1 };
        resumed_at = Some(progress.first_step);
        let saved = checkpoint::newest(&out).filter(|_| progress.opened);
        if losses > MAX_LOSSES {
            return Err(Error::DeviceLost { step: progress.step, times: losses, reason, checkpoint: saved });
        }
        listen(Event::DeviceLost { step: progress.step, reason: &reason, checkpoint: saved.as_deref() });
        start = progress.next_start(start, &out);
        gpu = open_again(&options, losses).await?;
    }
}

/// Opens the device once more. A driver that resets itself may need some seconds.
async fn open_again(options: &GpuOptions, losses: usize) -> Result<Gpu> {
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::sleep(std::time::Duration::from_secs(losses as u64));
    #[cfg(target_arch = "wasm32")]
    let _ = losses;
    Ok(Gpu::open(options).await?)
}

/// Makes the run on a device, up to its end or its first error.
async fn attempt(
    prepared: &mut PreparedRun,
    gpu: Gpu,
    group: Option<Group>,
    start: &Start,
    control: &mut impl AsyncFnMut() -> Control,
    listen: &mut impl FnMut(Event<'_>),
    progress: &mut Progress,
) -> Result<Outcome> {
    let out = prepared.settings.out.clone();
    let provenance = prepared.provenance()?;
    let resumed = start.resume.as_ref().map(|resume| Resumed::find(prepared, resume, &provenance)).transpose()?;
    let shard = group.as_ref().map_or(Shard::default(), Group::shard);
    let (mut engine, record) = open_engine(prepared, gpu, shard, listen).await?;
    // Only now, so that a model that cannot be loaded neither replaces an earlier run nor leaves a trace of this one.
    let mut output = Output::open(&out, start.overwrite, resumed.as_ref().map(|found| &found.from))?;
    progress.opened = true;
    output.write_run(&prepared.settings, &record)?;
    // At once, so that checkpoints and stopped runs have it too. A whole model gets it with its weights.
    if prepared.settings.method != Method::Full {
        prepared.save_text_format(&out)?;
    }
    if prepared.settings.tensorboard {
        output.add_tensorboard()?;
    }
    take_up(prepared, &mut engine, |done, total| listen(Event::Phase(Phase::Evaluating { done, total }))).await?;
    engine.profile = start.profile.then(Profile::default);
    engine.group = group;
    let state = first_state(&mut engine, prepared, resumed.as_ref(), provenance, listen)?;
    prepared.release_initial();
    engine.start_together(resumed.as_ref().map(|found| &*found.checkpoint.moments)).await?;
    drop(resumed);
    (progress.first_step, progress.step) = (state.step, state.step);
    let curves = output.curves()?;
    let observer = Observer {
        output: &mut output,
        listen,
        settings: prepared.settings.clone(),
        steps: prepared.steps,
        steps_per_epoch: prepared.steps_per_epoch(),
        gpu_bytes: engine.buffers.ledger().total(),
        tokens: state.tokens,
        unlogged: state.unlogged.clone(),
        speed: Speed::starting_now(),
        skipped_in_a_row: 0,
        parameters: parameters(&prepared.source.config),
        vocabulary: match prepared.settings.objective() {
            Objective::Sft => prepared.source.config.vocab_size,
            // The other losses have nothing to do with that of guessing words.
            Objective::Preference(_) | Objective::Distill { .. } => usize::MAX,
        },
        curves,
        next_look: Some(1),
    };
    let outcome = Outcome {
        step: state.step,
        interrupted: false,
        stopped_early: false,
        best: None,
        last_eval: None,
        first_eval: None,
        warnings: Vec::new(),
        profile: None,
        group: None,
        loss_svg: PathBuf::new(),
    };
    let eval_batches = prepared.eval_batches()?;
    let last_save = Instant::now();
    let mut training = Training { prepared, engine, observer, state, eval_batches, outcome, progress, last_save };
    if let Err(error) = training.make_steps(control).await {
        if matches!(error, Error::Training(_)) {
            // The picture shows what happened; the error is what counts.
            let _ = training.draw();
        }
        return Err(error);
    }
    training.finish(&out).await
}

/// A checkpoint that was found and read.
struct Resumed {
    dir: PathBuf,
    checkpoint: Checkpoint,
    /// Sentences about newer checkpoints that are damaged.
    passed_over: Vec<String>,
    from: Continued,
    /// Settings that have changed since, as sentences.
    changed: Vec<String>,
}

impl Resumed {
    fn find(prepared: &PreparedRun, resume: &Resume, provenance: &Provenance) -> Result<Self> {
        let out = &prepared.settings.out;
        let missing = || Error::file(out, format!("holds no checkpoint to resume from; start anew without {RESUME}"));
        let mut passed_over = Vec::new();
        let dir = match resume {
            Resume::Newest => checkpoint::newest_whole(out, &mut passed_over)?.ok_or_else(missing)?,
            Resume::At(dir) => dir.clone(),
        };
        let moments = prepared.settings.optim.moments();
        let checkpoint = checkpoint::load(&dir, &prepared.source.config, prepared.trainable(), moments)?;
        let from = Continued { run: checkpoint::run_of(&dir)?.0, step: checkpoint.state.step };
        let changed = checkpoint.state.origin.check_resume(provenance).map_err(|problem| Error::file(&dir, problem))?;
        Ok(Self { dir, checkpoint, from, passed_over, changed })
    }
}

/// Plans the run's memory and loads the base; also gives the record of what the run is made with.
pub(super) async fn open_engine(
    prepared: &PreparedRun,
    gpu: Gpu,
    shard: Shard,
    listen: &mut impl FnMut(Event<'_>),
) -> Result<(Engine, RunRecord)> {
    let plan = prepared.plan_shard(gpu.capabilities, shard)?;
    let trained_parameters = prepared.trained_parameters();
    let ledger = plan.ledger();
    listen(Event::Planned {
        ledger: &ledger,
        kept_layers: plan.recompute.kept_layers,
        layers: prepared.source.config.num_layers,
        trained_parameters,
        steps: prepared.steps,
    });
    listen(Event::Phase(Phase::Preparing));
    let mut record = RunRecord {
        loraine: env!("CARGO_PKG_VERSION").to_owned(),
        gpu: gpu.adapter.name.clone(),
        driver: format!("{} {}", gpu.adapter.driver, gpu.adapter.driver_info),
        backend: gpu.adapter.backend.clone(),
        trained_parameters,
        gpu_bytes: ledger.total(),
        kernels: Vec::new(),
        directory: std::env::current_dir().ok(),
        data: prepared.data.clone(),
        eval: prepared.eval.clone(),
    };
    let loading = |done, total| listen(Event::Loading { done, total });
    let engine = match prepared.settings.from_scratch {
        false => Engine::open(gpu, plan, &prepared.source, loading).await?,
        true => Engine::from_scratch(gpu, plan, prepared.settings.seed).await?,
    };
    record.kernels = engine.plan.shared.autotune.lines();
    Ok((engine, record))
}

/// Gives an opened engine the objective, the initial values and the log-probabilities that the objective compares with.
pub(super) async fn take_up(
    prepared: &mut PreparedRun,
    engine: &mut Engine,
    progress: impl FnMut(usize, usize),
) -> Result<()> {
    engine.objective = prepared.settings.objective();
    let initial = prepared.initial()?;
    engine.write_adapter(&initial);
    drop(initial);
    prepared.add_references(engine, progress).await
}

/// Sets the trained values, to those of the checkpoint or to the initial ones, and gives the state that the run starts in.
fn first_state(
    engine: &mut Engine,
    prepared: &PreparedRun,
    resumed: Option<&Resumed>,
    provenance: Provenance,
    listen: &mut impl FnMut(Event<'_>),
) -> Result<RunState> {
    let Some(Resumed { dir, checkpoint, from, passed_over, changed }) = resumed else {
        let initial = prepared.initial()?;
        engine.write_adapter(&initial);
        return Ok(RunState { step: 0, tokens: 0, unlogged: Vec::new(), best: None, origin: provenance });
    };
    let step = checkpoint.state.step;
    let out = &prepared.settings.out;
    checkpoint::remove_after(out, step)?;
    if let Some(best) = checkpoint.state.best.filter(|_| !same_directory(&from.run, out)) {
        checkpoint::copy(&from.run, out, best.step)?;
    }
    engine.resume(step, &checkpoint.values, &checkpoint.moments);
    listen(Event::Resumed { step, from: dir, passed_over, changed });
    Ok(RunState { origin: provenance, ..checkpoint.state.clone() })
}

/// A run between its first and its last step.
struct Training<'a, L: FnMut(Event<'_>)> {
    prepared: &'a mut PreparedRun,
    engine: Engine,
    observer: Observer<'a, L>,
    state: RunState,
    eval_batches: Vec<MicroBatch>,
    outcome: Outcome,
    progress: &'a mut Progress,
    last_save: Instant,
}

impl<L: FnMut(Event<'_>)> Training<'_, L> {
    /// Makes every step that is left, or those up to the command to stop.
    async fn make_steps(&mut self, control: &mut impl AsyncFnMut() -> Control) -> Result<()> {
        if !self.eval_batches.is_empty() && self.state.step == 0 {
            self.progress.first_eval = Some(self.observer.evaluate(&mut self.engine, &self.eval_batches, 0).await?);
        }
        while self.state.step < self.prepared.steps {
            self.step().await?;
            let mut request = control().await;
            self.evaluate_and_save(request).await?;
            while request == Control::Save {
                request = control().await;
                self.observer.speed = Speed::starting_now();
            }
            if self.has_waited() && self.state.step < self.prepared.steps {
                self.outcome.stopped_early = true;
                break;
            }
            if request == Control::Stop && self.state.step < self.prepared.steps {
                self.outcome.interrupted = true;
                break;
            }
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<()> {
        let micro_batches = self.prepared.micro_batches(self.state.step)?;
        self.observer.compile(&mut self.engine, &micro_batches).await?;
        let settings = &self.prepared.settings;
        let factor = settings.decay(self.prepared.steps).factor(self.state.step, self.prepared.steps);
        let (lr, optimizer) = (settings.lr * factor, settings.optimizer());
        let (step, total) = (self.state.step + 1, micro_batches.len());
        let listen = &mut self.observer.listen;
        let progress = |done| listen(Event::Phase(Phase::Step { step, done, total }));
        let result = self.engine.step_watched(&micro_batches, &optimizer, lr, settings.seed, progress).await?;
        (self.state.step, self.progress.step) = (step, step);
        if let Some(result) = result {
            self.observer.step(result)?;
        }
        // The first result shows that all is well, so it is waited for. Later ones come while the next steps run.
        match step == self.progress.first_step + 1 {
            true => self.observer.drain(&mut self.engine).await,
            false => self.observer.take_ready(&mut self.engine).await,
        }
    }

    /// After a step: the evaluation and the checkpoint that are due then or that `request` wants.
    async fn evaluate_and_save(&mut self, request: Control) -> Result<()> {
        let (settings, step) = (&self.prepared.settings, self.state.step);
        let every = |count: usize| count > 0 && step.is_multiple_of(count);
        let last = step == self.prepared.steps;
        let minutes = self.last_save.elapsed().as_secs_f64() / 60.0;
        // The end of the run saves what was trained.
        let by_time = settings.save_minutes > 0.0 && minutes >= settings.save_minutes && !last;
        let due = every(settings.save_every) || by_time;
        let evaluate = !self.eval_batches.is_empty() && (every(settings.eval_every) || last);
        if due || evaluate || request != Control::Continue {
            self.observer.drain(&mut self.engine).await?;
        }
        let mut is_best = false;
        if evaluate {
            let metrics = self.observer.evaluate(&mut self.engine, &self.eval_batches, step).await?;
            if settings.keeps_best() {
                let threshold = settings.early_stopping_threshold;
                let best = BestEvaluation::after(self.state.best, step, metrics.eval_loss, threshold);
                is_best = best.step == step;
                self.state.best = Some(best);
            }
            self.outcome.last_eval = Some(metrics);
        }
        // After a skipped step the state may be broken for good, and must not push the last good checkpoint out.
        if (due && self.observer.skipped_in_a_row == 0) || request != Control::Continue || is_best {
            self.save_checkpoint().await?;
        }
        Ok(())
    }

    async fn save_checkpoint(&mut self) -> Result<()> {
        (self.observer.listen)(Event::Phase(Phase::Saving));
        self.state.tokens = self.observer.tokens;
        self.state.unlogged = self.observer.unlogged.clone();
        let checkpoint = Checkpoint {
            state: self.state.clone(),
            values: self.engine.read_values().await?,
            moments: self.engine.collect_moments().await?,
        };
        let settings = &self.prepared.settings;
        self.observer.output.sync()?;
        let place = checkpoint::save(&settings.out, self.prepared.trainable(), checkpoint, settings.keep)?;
        (self.observer.listen)(Event::Saved(&place));
        self.last_save = Instant::now();
        Ok(())
    }

    /// True if evaluations have not become better for as long as the settings allow.
    fn has_waited(&self) -> bool {
        let (patience, best) = (self.prepared.settings.early_stopping_patience, self.state.best);
        patience.zip(best).is_some_and(|(patience, best)| best.waited >= patience)
    }

    /// The values of the best evaluation where the run keeps them, else those of the last step.
    async fn result(&self, out: &Path) -> Result<TrainedValues> {
        match self.state.best.filter(|_| self.prepared.settings.keeps_best()) {
            Some(best) if best.step != self.state.step => {
                let place = checkpoint::at(out, best.step);
                let (config, moments) = (&self.prepared.source.config, self.prepared.settings.optim.moments());
                Ok(checkpoint::load(&place, config, self.prepared.trainable(), moments)?.values)
            }
            _ => self.engine.read_values().await,
        }
    }

    /// Waits for the last results and writes the trained values and the drawing of the loss into `out`.
    async fn finish(mut self, out: &Path) -> Result<Outcome> {
        self.observer.drain(&mut self.engine).await?;
        if let Some(group) = self.engine.group.take() {
            self.outcome.group = Some(group.usage.clone());
            group.end()?;
        }
        (self.observer.listen)(Event::Phase(Phase::Saving));
        let (settings, source) = (&self.prepared.settings, &self.prepared.source);
        let float = settings.dtype.unwrap_or_else(|| source.stored(EMBEDDING));
        match (self.prepared.trainable(), self.result(out).await?) {
            (Trainable::Adapter { config, modules }, TrainedValues::Adapter(adapter)) => {
                adapter_file::save_on(out, config, modules, &adapter, source)?;
            }
            (trainable, values) => trainable.save(out, &values, float)?,
        }
        self.observer.output.sync()?;
        checkpoint::remove_beyond(out, settings.keep, self.state.best)?;
        if settings.method == Method::Full {
            self.prepared.save_text_format(out)?;
        }
        (self.observer.listen)(Event::Saved(out));
        self.outcome.step = self.state.step;
        self.outcome.best = self.state.best.filter(|_| settings.keeps_best());
        self.outcome.profile = self.engine.profile.take();
        self.outcome.loss_svg = self.draw()?;
        self.outcome.warnings = self.observer.warnings();
        Ok(self.outcome)
    }

    /// Draws the curves so far, with the signs that the run goes wrong.
    fn draw(&self) -> Result<PathBuf> {
        self.observer.output.draw_loss(&self.observer.curves, &self.observer.warnings())
    }
}
