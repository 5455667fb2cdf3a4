//! The report of a bench, which is its JSON file.

use serde::{Deserialize, Serialize};

use super::{Ceilings, LengthResult, OperationResult, StepResult};

/// The results of one bench.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name of the adapter.
    pub gpu: String,
    /// Name and version of the adapter's driver.
    pub driver: String,
    /// The best rates of the adapter.
    pub ceilings: Ceilings,
    /// The operations at real shapes.
    pub operations: Vec<OperationResult>,
    /// Whole training steps.
    pub steps: Vec<StepResult>,
    /// The memory of sequences of several lengths, by plan.
    pub lengths: Vec<LengthResult>,
}
