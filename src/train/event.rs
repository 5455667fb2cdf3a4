//! The events of a run, the commands of its watcher, and its outcome.

use std::path::{Path, PathBuf};

use super::checkpoint::BestEvaluation;
use super::output::{EvalMetrics, StepMetrics};
use crate::gpu::{Ledger, Profile};

/// An event of a run, given to the watcher as it happens.
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
        /// Sentences about newer checkpoints that are damaged; the run replaces them.
        passed_over: &'a [String],
        /// Settings that have changed since the checkpoint, so that the rest differs from that of one uninterrupted run.
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
    /// The device was lost after `step` steps. The run opens it again and goes on from `checkpoint`, or from its beginning.
    DeviceLost {
        step: usize,
        reason: &'a str,
        checkpoint: Option<&'a Path>,
    },
    Evaluated(&'a EvalMetrics),
    Saved(&'a Path),
}

/// The command that the watcher of a run gives after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
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
    pub interrupted: bool,
    /// True if evaluations had not become better for as long as the settings allow.
    pub stopped_early: bool,
    /// The evaluation that the trained values are of, where the run keeps the best ones.
    pub best: Option<BestEvaluation>,
    pub last_eval: Option<EvalMetrics>,
    pub first_eval: Option<EvalMetrics>,
    pub profile: Option<Profile>,
    pub loss_svg: PathBuf,
}
