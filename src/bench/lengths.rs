//! The memory of longer sequences, from the plan of a training step at several lengths. A run allocates exactly its plan, so that no
//! device is needed.

use serde::{Deserialize, Serialize};

use super::steps::{self, Shape};
use crate::Result;
use crate::gpu::{Capabilities, Category};
use crate::train::settings::{RecomputeChoice, RunSettings};

const MODEL: &str = "smollm2-135m";
const LENGTHS: [usize; 6] = [256, 512, 1024, 2048, 4096, 8192];

/// The memory of a training step on one sequence of `tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LengthResult {
    /// Name of the model.
    pub model: String,
    /// Length of the sequence in tokens.
    pub tokens: usize,
    /// Bytes that depend on the length: kept activations, workspace and uploads.
    pub bytes: u64,
    /// The distance from the straight line through the shortest and the longest sequence, as a share of the line.
    pub off_the_line: f64,
}

pub(super) fn measure(capabilities: Capabilities) -> Result<Vec<LengthResult>> {
    let bytes = |length: usize| -> Result<u64> {
        let shape = Shape::named(&format!("{MODEL}:1x{length}"))?;
        let settings = RunSettings { recompute: RecomputeChoice::All, ..RunSettings::default() };
        let ledger = steps::plan(capabilities, &shape, &settings)?.1.ledger();
        Ok([Category::KeptActivations, Category::Workspace, Category::Uploads].map(|c| ledger.get(c)).iter().sum())
    };
    let [shortest, .., longest] = LENGTHS;
    let (low, high) = (bytes(shortest)? as f64, bytes(longest)? as f64);
    let result = |tokens: usize| {
        let line = low + (high - low) * (tokens - shortest) as f64 / (longest - shortest) as f64;
        let bytes = bytes(tokens)?;
        Ok(LengthResult { model: MODEL.to_owned(), tokens, bytes, off_the_line: bytes as f64 / line - 1.0 })
    };
    LENGTHS.into_iter().map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_in_a_line_with_the_length() {
        for capabilities in [Capabilities::BASELINE, Capabilities { cpu: true, ..Capabilities::BASELINE }] {
            for result in measure(capabilities).unwrap() {
                assert!(result.off_the_line.abs() < 0.05, "{result:?}");
            }
        }
    }
}
