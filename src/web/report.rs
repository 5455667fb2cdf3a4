//! Plain objects for a page; their TypeScript types are generated from these structs.

use serde::Serialize;
use tsify::Tsify;

use crate::data::report::DataReport;
use crate::gpu::{Category, Ledger};
use crate::memory::Estimate;
use crate::train::output::{EvalMetrics, StepMetrics};

#[derive(Serialize, Tsify)]
pub struct FileEntry {
    pub path: String,
    pub bytes: u64,
}

/// Device memory of one category.
#[derive(Serialize, Tsify)]
pub struct Part {
    pub name: Category,
    pub label: &'static str,
    pub bytes: u64,
}

#[derive(Serialize, Tsify)]
pub struct PlanReport {
    /// Bytes on the device.
    pub total: u64,
    pub categories: Vec<Part>,
    pub trained_parameters: u64,
    pub layers: usize,
    /// Layers that keep their activations; the others recompute them.
    pub kept_layers: usize,
    pub steps: Option<usize>,
    pub data: Option<DataReport>,
}

fn parts(entries: impl Iterator<Item = (Category, u64)>) -> Vec<Part> {
    entries.map(|(name, bytes)| Part { name, label: name.name(), bytes }).collect()
}

impl PlanReport {
    pub fn of(ledger: &Ledger, trained_parameters: u64, layers: usize, kept_layers: usize) -> Self {
        let (total, categories) = (ledger.total(), parts(ledger.entries()));
        Self { total, categories, trained_parameters, layers, kept_layers, steps: None, data: None }
    }

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

#[derive(Serialize, Tsify)]
pub struct StepReport {
    #[serde(flatten)]
    pub metrics: StepMetrics,
    pub steps: usize,
}

/// An event of a run.
#[derive(Serialize, Tsify)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent {
    Planned(PlanReport),
    Resumed {
        step: usize,
    },
    Loading {
        done: u64,
        total: u64,
    },
    Step(StepReport),
    /// Loss or gradient were not finite, so the step changed nothing.
    Skipped {
        step: usize,
    },
    Evaluated(EvalMetrics),
    /// Directory in the engine's file system: a checkpoint, or at the end the output directory.
    Saved {
        path: String,
    },
    Paused {
        step: usize,
    },
    Continued {
        step: usize,
    },
}

#[derive(Serialize, Tsify)]
pub struct RunOutcome {
    pub step: usize,
    pub interrupted: bool,
    pub first_eval: Option<EvalMetrics>,
    pub last_eval: Option<EvalMetrics>,
}
