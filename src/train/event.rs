//! The events of a run, the commands of its watcher, and its outcome.

use std::path::{Path, PathBuf};

use super::checkpoint::BestEvaluation;
use super::diagnosis::Warning;
use super::group::GroupUsage;
use super::output::{EvalMetrics, StepMetrics};
use crate::gpu::{Ledger, Profile};

/// The work that a run is about to do, for a watcher that shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Measures kernels and allocates the device memory.
    Preparing,
    /// Compiles the kernels of the next passes.
    Compiling {
        /// Kernels that are compiled.
        done: usize,
        /// Kernels to compile.
        total: usize,
    },
    /// Evaluates.
    Evaluating {
        /// Micro-batches that are done.
        done: usize,
        /// Micro-batches of the evaluation.
        total: usize,
    },
    /// Makes a step.
    Step {
        /// Number of the step, from 1.
        step: usize,
        /// Micro-batches that were given to the device.
        done: usize,
        /// Micro-batches of the step.
        total: usize,
    },
    /// Reads the trained values back and writes files.
    Saving,
}

impl Phase {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Compiling { .. } => "compiling",
            Self::Evaluating { .. } => "evaluating",
            Self::Step { .. } => "step",
            Self::Saving => "saving",
        }
    }

    /// The count of finished parts and of all parts, where the phase has such.
    pub fn progress(self) -> Option<(usize, usize)> {
        match self {
            Self::Compiling { done, total } | Self::Evaluating { done, total } | Self::Step { done, total, .. } => {
                Some((done, total))
            }
            Self::Preparing | Self::Saving => None,
        }
    }
}

/// An event of a run, given to the watcher as it happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// The memory plan is made; nothing is allocated yet.
    Planned {
        /// Bytes of the plan by category.
        ledger: &'a Ledger,
        /// Layers that keep their activations; the others compute them again.
        kept_layers: usize,
        /// Decoder layers of the model.
        layers: usize,
        /// Number of parameters that the optimizer changes.
        trained_parameters: u64,
        /// Optimizer steps of the whole run.
        steps: usize,
    },
    /// The run goes on from a checkpoint.
    Resumed {
        /// Optimizer steps of that checkpoint.
        step: usize,
        /// Its directory.
        from: &'a Path,
        /// Sentences about newer checkpoints that are damaged; the run replaces them.
        passed_over: &'a [String],
        /// Settings that have changed since the checkpoint, so that the rest differs from that of one uninterrupted run.
        changed: &'a [String],
    },
    /// A piece of the weights reached the device.
    Loading {
        /// Bytes of the model's files so far.
        done: u64,
        /// Bytes of the model's files in all.
        total: u64,
    },
    /// The run is about to do this.
    Phase(Phase),
    /// A step was made and logged.
    Step {
        /// The line of `metrics.jsonl`.
        metrics: &'a StepMetrics,
        /// Optimizer steps of the whole run.
        steps: usize,
    },
    /// Loss or gradient were not finite; the step changed nothing.
    Skipped {
        /// Number of the step, from 1.
        step: usize,
    },
    /// The device was lost after `step` steps. The run opens it again and goes on from `checkpoint`, or from its beginning.
    DeviceLost {
        /// Optimizer steps done before.
        step: usize,
        /// Reason that the driver gave.
        reason: &'a str,
        /// Checkpoint to go on from; `None` where the run begins anew.
        checkpoint: Option<&'a Path>,
    },
    /// The loss on the held-out data was measured.
    Evaluated(&'a EvalMetrics),
    /// A sign that the run goes wrong.
    Warning(&'a Warning),
    /// A directory was written: a checkpoint, or at the end the run's own.
    Saved(&'a Path),
}

/// The command that the watcher of a run gives after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Make the next step.
    Continue,
    /// Save a checkpoint, and ask again before the next step. A watcher that pauses a run gives this first.
    Save,
    /// Save a checkpoint and end.
    Stop,
}

/// The commands of a watcher that lets the run go on to its end.
pub async fn to_the_end() -> Control {
    Control::Continue
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Optimizer steps done.
    pub step: usize,
    /// True if the run was stopped before its last step.
    pub interrupted: bool,
    /// True if evaluations had not become better for as long as the settings allow.
    pub stopped_early: bool,
    /// The evaluation that the trained values are of, where the run keeps the best ones.
    pub best: Option<BestEvaluation>,
    /// The last evaluation; `None` without held-out data, or if the run was stopped before one.
    pub last_eval: Option<EvalMetrics>,
    /// The evaluation before the first step; `None` without held-out data, and in a resumed run.
    pub first_eval: Option<EvalMetrics>,
    /// Signs that the run went wrong; empty after a good one.
    pub warnings: Vec<Warning>,
    /// GPU time by operation, if [`super::run::Start::profile`] asked for it.
    pub profile: Option<Profile>,
    /// The time that a group of GPUs has spent, if there was one.
    pub group: Option<GroupUsage>,
    /// Path of the picture of the loss.
    pub loss_svg: PathBuf,
}
