//! The files that a run leaves in its directory, checkpoints and adapter aside: `metrics.jsonl`, `run.toml`, `loss.svg`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::diagnosis::{Curves, Warning};
use super::objective::Report;
use super::settings::RunSettings;
use super::tensorboard::EventFile;
use crate::data::read::DataReport;
use crate::data::settings::RUN_FILE;
use crate::data::template::{FURTHER, OWN_FILE};
use crate::files::{self, File, write_atomically};
use crate::hub::dataset::HubDataset;
use crate::hub::name_of_cached;
use crate::lora::adapter_file;
use crate::setting::{OVERWRITE, RESUME, as_toml, written};
use crate::{Error, Result};

const METRICS: &str = "metrics.jsonl";
const RUN: &str = RUN_FILE;

/// One logged step, a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: usize,
    /// Passes over the data since the start.
    #[serde(default)]
    pub epoch: f64,
    /// Mean loss over the steps since the last line, in nats. `values` are means too.
    pub loss: f64,
    /// Further values of the objective by name, between the other fields.
    #[serde(flatten)]
    #[cfg_attr(target_arch = "wasm32", tsify(type = "{}"))]
    pub values: BTreeMap<String, f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Rows computed since the start.
    pub tokens: u64,
    /// Rows computed per second, over the last few steps.
    pub tokens_per_s: f64,
    /// Device memory of the run in bytes.
    pub gpu_bytes: u64,
}

/// One evaluation, a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct EvalMetrics {
    /// Optimizer steps done; 0 is before the first.
    pub step: usize,
    /// Passes over the data since the start.
    #[serde(default)]
    pub epoch: f64,
    /// Mean loss over the held-out tokens, in nats.
    pub eval_loss: f64,
    /// Further values of the objective, each name with `eval_` before it: `eval_perplexity`.
    #[serde(flatten)]
    #[cfg_attr(target_arch = "wasm32", tsify(type = "{}"))]
    pub values: BTreeMap<String, f64>,
    /// Number of held-out tokens in the loss.
    pub eval_tokens: usize,
}

impl EvalMetrics {
    /// The metrics of an evaluation after `step` steps or `epoch` passes over the data, over `tokens` held-out tokens.
    pub fn new(step: usize, epoch: f64, report: Report, tokens: usize) -> Self {
        let values = report.values.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect();
        Self { step, epoch, eval_loss: report.loss, values, eval_tokens: tokens }
    }

    /// The further values of the objective, by its own names.
    pub fn named_values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.strip_prefix("eval_").unwrap_or(name), *value))
    }
}

/// A step whose loss or gradient were not finite, a line of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct SkippedStep {
    step: usize,
    skipped: bool,
}

/// A record of how a run was made, beside its settings.
#[derive(Clone, Debug, Serialize)]
pub struct RunRecord {
    /// Version of loraine.
    pub loraine: String,
    /// Name of the adapter.
    pub gpu: String,
    /// Name and version of its driver.
    pub driver: String,
    /// Interface to the driver, such as `vulkan` or `metal`.
    pub backend: String,
    /// Number of parameters that the optimizer changes.
    pub trained_parameters: u64,
    /// Device memory of the run in bytes.
    pub gpu_bytes: u64,
    /// Kernels that autotuning chose. Every choice gives the same bits, so a resumed run may use others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<String>,
    /// The working directory, which relative paths of the settings begin at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Report on the training data.
    pub data: DataReport,
    /// Report on the evaluation data; `None` where it was held out of the training data.
    pub eval: Option<DataReport>,
}

/// The place that a run goes on from: a step of the run in a directory.
#[derive(Clone, Debug)]
pub struct Continued {
    /// Directory of the run.
    pub run: PathBuf,
    /// Optimizer steps done.
    pub step: usize,
}

/// True if both are one directory.
pub fn same_directory(a: &Path, b: &Path) -> bool {
    a == b || files::canonicalize(a).is_ok_and(|a| files::canonicalize(b).is_ok_and(|b| a == b))
}

/// A run's directory, open for its metrics.
pub struct Output {
    dir: PathBuf,
    metrics: File,
    events: Option<EventFile>,
}

impl Output {
    /// Checks that a run may write into `dir`.
    ///
    /// # Errors
    /// A directory that holds a run already, unless `may_hold_run`, or where nothing can be written.
    pub fn check(dir: &Path, may_hold_run: bool) -> Result<()> {
        if !may_hold_run {
            refuse_run(dir)?;
        }
        files::check_unlocked(dir)?;
        let there = dir.ancestors().find(|d| d.as_os_str().is_empty() || files::exists(d)).unwrap_or(dir);
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        files::check_writable(there).map_err(|e| Error::file(dir, format!("cannot be written to: {e}")))
    }

    /// Opens `dir`, which the caller has locked, for a new run, or for one that goes on with the run of `from`, in its own directory or in
    /// this one. `overwrite` removes what an earlier run has written, and nothing else.
    ///
    /// # Errors
    /// A directory that holds a run already, unless it is resumed or `overwrite` is set.
    pub fn open(dir: &Path, overwrite: bool, from: Option<&Continued>) -> Result<Self> {
        let here = from.is_some_and(|from| same_directory(&from.run, dir));
        if !(overwrite || here) {
            refuse_run(dir)?;
        }
        let failed = |e: std::io::Error| Error::file(dir, format!("cannot be written to: {e}"));
        if overwrite && !here {
            for file in [METRICS, RUN, "loss.svg", "adapter_model.safetensors", "adapter_config.json"] {
                files::remove_if_there(&dir.join(file)).map_err(failed)?;
            }
            for file in [OWN_FILE, FURTHER, "generation_config.json"] {
                files::remove_if_there(&dir.join(file)).map_err(failed)?;
            }
            let card = dir.join("README.md");
            if adapter_file::is_own_card(&card) {
                files::remove_if_there(&card).map_err(failed)?;
            }
            checkpoint::remove_all(dir)?;
        }
        files::create_dir_all(dir).map_err(failed)?;
        files::sync_directory(dir.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        let path = dir.join(METRICS);
        if let Some(Continued { run, step }) = from {
            if !here && let Ok(earlier) = files::read(run.join(METRICS)) {
                write_atomically(&path, &earlier)?;
            }
            keep_until(&path, *step)?;
            checkpoint::remove_parts(dir)?;
        }
        let metrics = files::append(&path);
        let metrics = metrics.map_err(|e| Error::file(&path, format!("cannot be opened: {e}")))?;
        Ok(Self { dir: dir.to_owned(), metrics, events: None })
    }

    /// Writes TensorBoard's event files beside the metrics from now on.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn add_tensorboard(&mut self) -> Result<()> {
        self.events = Some(EventFile::create(&self.dir)?);
        Ok(())
    }

    /// Appends the line of a step to `metrics.jsonl`, and its values to TensorBoard's file where there is one.
    ///
    /// # Errors
    /// A full disk.
    pub fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        let mut values = vec![("train/loss".to_owned(), metrics.loss)];
        values.extend(metrics.values.iter().map(|(name, value)| (format!("train/{name}"), *value)));
        values.extend([
            ("train/learning_rate".to_owned(), metrics.lr),
            ("train/grad_norm".to_owned(), metrics.grad_norm),
            ("train/tokens_per_second".to_owned(), metrics.tokens_per_s),
        ]);
        self.log(metrics)?;
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(metrics.step, &values))
    }

    /// Appends the line of an evaluation to `metrics.jsonl`, and its values to TensorBoard's file where there is one.
    ///
    /// # Errors
    /// A full disk.
    pub fn log_evaluation(&mut self, metrics: &EvalMetrics) -> Result<()> {
        let mut values = vec![("eval/loss".to_owned(), metrics.eval_loss)];
        values.extend(metrics.named_values().map(|(name, value)| (format!("eval/{name}"), value)));
        self.log(metrics)?;
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(metrics.step, &values))
    }

    /// Adds the line of a step that was skipped because its numbers were not finite.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written.
    pub fn log_skipped(&mut self, step: usize) -> Result<()> {
        self.log(&SkippedStep { step, skipped: true })
    }

    /// Appends one line.
    fn log(&mut self, metrics: &impl Serialize) -> Result<()> {
        let path = self.dir.join(METRICS);
        let mut line = serde_json::to_string(metrics).map_err(|e| Error::file(&path, e))?;
        line.push('\n');
        self.metrics.write_all(line.as_bytes()).map_err(|e| Error::file(&path, format!("cannot be written: {e}")))
    }

    /// Writes `run.toml`: the settings as a file that `--config` takes, and a record of what they ran on.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_run(&self, settings: &RunSettings, record: &RunRecord) -> Result<()> {
        #[derive(Serialize)]
        struct Run<'a> {
            #[serde(flatten)]
            settings: &'a RunSettings,
            record: &'a RunRecord,
        }
        let path = self.dir.join(RUN);
        // The hub's name and commit, which hold on every machine, rather than the place in this one's cache.
        let named = |path: &PathBuf| name_of_cached(path).map_or_else(|| path.clone(), PathBuf::from);
        let model = named(&settings.model);
        let init_adapter = settings.init_adapter.as_ref().map(named);
        let data = settings.data.iter().map(|path| named_data(path)).collect::<Vec<_>>().into();
        let eval_data = settings.eval_data.as_deref().map(named_data);
        let settings = &RunSettings { model, init_adapter, data, eval_data, ..settings.clone() };
        let text = toml::to_string(&Run { settings, record }).map_err(|e| Error::file(&path, e))?;
        write_atomically(&path, text.as_bytes())
    }

    /// Writes the metrics to the disk, so that they survive a power cut.
    ///
    /// # Errors
    /// A failing disk.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync_all().map_err(|e| Error::file(self.dir.join(METRICS), format!("cannot be written: {e}")))
    }

    /// Draws `loss.svg` of the run's curves, with the warnings below them.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn draw_loss(&self, curves: &Curves, warnings: &[Warning]) -> Result<PathBuf> {
        let path = self.dir.join("loss.svg");
        let sentences: Vec<String> = warnings.iter().map(|warning| written(&warning.message, as_toml)).collect();
        write_atomically(&path, super::plot::loss_svg(curves, &sentences).as_bytes())?;
        Ok(path)
    }

    /// The metrics that were logged so far.
    ///
    /// # Errors
    /// Metrics that cannot be read.
    pub fn curves(&self) -> Result<Curves> {
        read_curves(&self.dir)
    }
}

fn refuse_run(dir: &Path) -> Result<()> {
    let holds = [METRICS, RUN, "adapter_model.safetensors", "model.safetensors"];
    if !holds.iter().any(|file| files::exists(&dir.join(file))) && checkpoint::newest(dir).is_none() {
        return Ok(());
    }
    let problem =
        format!("holds another run; choose a new directory, {RESUME} to go on with it, or {OVERWRITE} to replace it");
    Err(Error::file(dir, problem))
}

/// The losses that `metrics.jsonl` of a run's directory holds so far.
///
/// # Errors
/// There is no `metrics.jsonl`, or it cannot be read.
pub fn read_curves(dir: &Path) -> Result<Curves> {
    let path = dir.join(METRICS);
    let text = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let mut curves = Curves::default();
    for line in text.lines() {
        if let Ok(metrics) = serde_json::from_str::<StepMetrics>(line) {
            curves.steps.push((metrics.step, metrics.loss));
        } else if let Ok(metrics) = serde_json::from_str::<EvalMetrics>(line) {
            curves.evals.push((metrics.step, metrics.eval_loss));
        } else if let Ok(SkippedStep { step, .. }) = serde_json::from_str(line) {
            curves.skipped.push(step);
        }
    }
    Ok(curves)
}

/// Drops the lines of steps after `step`, which a resumed run makes again.
fn keep_until(path: &Path, step: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Line {
        step: usize,
    }
    let Ok(text) = files::read_to_string(path) else { return Ok(()) };
    let kept = text.lines().filter(|line| serde_json::from_str::<Line>(line).is_ok_and(|l| l.step <= step));
    write_atomically(path, kept.flat_map(|line| [line, "\n"]).collect::<String>().as_bytes())
}

/// The name of a data set that lies in the hub's cache, or the path.
fn named_data(path: &Path) -> PathBuf {
    HubDataset::of_snapshot(path).map_or_else(|| path.to_owned(), |set| set.to_string().into())
}
