//! Plain objects for a page; their TypeScript types are generated from these structs.

use serde::Serialize;
use tsify::Tsify;

use crate::data::report::DataReport;
use crate::gpu::{Category, Ledger};
use crate::memory::Estimate;
use crate::train::diagnosis::Warning;
use crate::train::event::Phase;
use crate::train::output::{EvalMetrics, StepMetrics};

/// A file of the engine's file system.
#[derive(Serialize, Tsify)]
pub struct FileEntry {
    /// Its absolute path.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Device memory of one category.
#[derive(Serialize, Tsify)]
pub struct Part {
    /// The category's key.
    pub name: Category,
    /// The category's name for people.
    pub label: &'static str,
    /// Bytes of the category on the device.
    pub bytes: u64,
}

/// The memory plan of a run, and the data and steps of the run where they are known.
#[derive(Serialize, Tsify)]
pub struct PlanReport {
    /// Bytes on the device.
    pub total: u64,
    /// Categories that hold anything; their bytes add up to `total`.
    pub categories: Vec<Part>,
    /// Number of parameters that the optimizer changes.
    pub trained_parameters: u64,
    /// Number of decoder layers of the model.
    pub layers: usize,
    /// Layers that keep their activations; the others recompute them.
    pub kept_layers: usize,
    /// Optimizer steps of the whole run; absent in an estimate.
    pub steps: Option<usize>,
    /// The examples that the data's files gave; absent in an estimate.
    pub data: Option<DataReport>,
}

fn parts(entries: impl Iterator<Item = (Category, u64)>) -> Vec<Part> {
    entries.map(|(name, bytes)| Part { name, label: name.name(), bytes }).collect()
}

impl PlanReport {
    /// The report of a plan with this ledger, without steps and data.
    pub fn of(ledger: &Ledger, trained_parameters: u64, layers: usize, kept_layers: usize) -> Self {
        let (total, categories) = (ledger.total(), parts(ledger.entries()));
        Self { total, categories, trained_parameters, layers, kept_layers, steps: None, data: None }
    }

    /// The report of an estimate, without steps and data.
    pub fn of_estimate(estimate: &Estimate) -> Self {
        Self {
            total: estimate.total,
            categories: parts(estimate.categories.iter().copied()),
            trained_parameters: estimate.trained_parameters,
            layers: estimate.layers,
            kept_layers: estimate.kept_layers,
            steps: None,
            data: None,
        }
    }
}

/// A logged step.
#[derive(Serialize, Tsify)]
pub struct StepReport {
    /// The line of `metrics.jsonl`.
    #[serde(flatten)]
    pub metrics: StepMetrics,
    /// Optimizer steps of the whole run.
    pub steps: usize,
}

/// The work that a run is about to do.
#[derive(Serialize, Tsify)]
pub struct PhaseReport {
    /// `preparing`, `compiling`, `evaluating`, `step` or `saving`.
    pub phase: &'static str,
    /// The step that is made, counted from 1.
    pub step: Option<usize>,
    /// Number of finished kernels or micro-batches; absent in phases that count nothing.
    pub done: Option<usize>,
    /// Number of kernels or micro-batches of the phase; absent in phases that count nothing.
    pub total: Option<usize>,
}

impl PhaseReport {
    /// The report of a phase, under the phase's name.
    pub fn of(phase: Phase) -> Self {
        let (done, total) = phase.progress().unzip();
        let step = if let Phase::Step { step, .. } = phase { Some(step) } else { None };
        Self { phase: phase.name(), step, done, total }
    }
}

/// An event of a run.
#[derive(Serialize, Tsify)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    /// The memory plan is made; nothing is allocated yet.
    Planned(PlanReport),
    /// The run goes on from a checkpoint.
    Resumed {
        /// Optimizer steps of that checkpoint.
        step: usize,
    },
    /// A piece of the weights reached the device.
    Loading {
        /// Bytes of the model's files so far.
        done: u64,
        /// Bytes of the model's files in all.
        total: u64,
    },
    /// The run is about to do this.
    Phase(PhaseReport),
    /// A step was made and logged.
    Step(StepReport),
    /// Loss or gradient were not finite, so the step changed nothing.
    Skipped {
        /// Number of the step, from 1.
        step: usize,
    },
    /// The run opens the device again, and goes on from its newest checkpoint or from its beginning.
    DeviceLost {
        /// Optimizer steps done before.
        step: usize,
        /// Reason that the driver gave.
        reason: String,
        /// True if there is a checkpoint to go on from.
        resumes: bool,
    },
    /// The loss on the held-out data was measured.
    Evaluated(EvalMetrics),
    /// A hint at the settings, or a sign that the run goes wrong.
    Warning(Warning),
    /// Directory in the engine's file system: a checkpoint, or at the end the output directory.
    Saved {
        /// Path of that directory.
        path: String,
    },
    /// The run is saved and waits.
    Paused {
        /// Optimizer steps done.
        step: usize,
    },
    /// The run goes on after a pause.
    Continued {
        /// Optimizer steps done.
        step: usize,
    },
}

/// The outcome of a run.
#[derive(Serialize, Tsify)]
pub struct RunOutcome {
    /// Optimizer steps done.
    pub step: usize,
    /// True if the run was stopped before its last step.
    pub interrupted: bool,
    /// The evaluation before the first step; absent without held-out data, and in a resumed run.
    pub first_eval: Option<EvalMetrics>,
    /// The last evaluation; absent without held-out data, or if the run was stopped before one.
    pub last_eval: Option<EvalMetrics>,
    /// Signs that the run went wrong. Settings in their messages are placeholders, as in errors.
    #[tsify(optional)]
    pub warnings: Vec<Warning>,
}
