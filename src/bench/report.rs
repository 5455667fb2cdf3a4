//! The results of one bench, as its JSON file holds them.

use serde::{Deserialize, Serialize};

use super::{Ceilings, LengthResult, OperationResult, StepResult};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub gpu: String,
    pub driver: String,
    pub ceilings: Ceilings,
    pub operations: Vec<OperationResult>,
    pub steps: Vec<StepResult>,
    /// What sequences of several lengths take, by plan.
    pub lengths: Vec<LengthResult>,
}
