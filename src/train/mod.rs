//! Training: the plan of a run, the step on the device, and the run around it.

pub mod engine;
pub mod plan;
