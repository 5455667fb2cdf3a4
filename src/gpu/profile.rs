//! GPU time by operation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// GPU seconds and dispatches by operation.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Seconds and dispatches by operation.
    pub ops: BTreeMap<&'static str, (f64, u64)>,
}

/// All dispatches of one operation in a profile.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationShare {
    /// Name of the operation.
    pub operation: String,
    /// Number of its dispatches.
    pub dispatches: u64,
    /// GPU time of all of them together, in milliseconds.
    pub ms: f64,
    /// The share of the whole profile's time, 0 to 1.
    pub share: f64,
}

impl Profile {
    /// Counts one dispatch of `op`.
    pub(super) fn add(&mut self, op: &'static str, seconds: f64) {
        let entry = self.ops.entry(op).or_default();
        entry.0 += seconds;
        entry.1 += 1;
    }

    /// The share of each operation, the longest first.
    pub fn shares(&self) -> Vec<OperationShare> {
        let total: f64 = self.ops.values().map(|(seconds, _)| seconds).sum();
        let share = |(op, (seconds, dispatches)): (&&'static str, &(f64, u64))| OperationShare {
            operation: (*op).to_owned(),
            dispatches: *dispatches,
            ms: seconds * 1e3,
            share: seconds / total.max(1e-12),
        };
        let mut shares: Vec<_> = self.ops.iter().map(share).collect();
        shares.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        shares
    }
}
