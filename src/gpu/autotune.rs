//! The choice among several kernels for one problem, as plain data, so that lists are recorded without a GPU.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A contraction of `depth` values for each of `rows` x `cols` outputs, by operands of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProblemSize {
    /// Name of the operation, such as `linear_forward_4bit`.
    pub op: &'static str,
    /// Name of the weight's format, such as `nf4`.
    pub storage: &'static str,
    /// Rows of the result.
    pub rows: u32,
    /// Columns of the result.
    pub cols: u32,
    /// Values that each output sums.
    pub depth: u32,
}

/// The key of problems that are taken to be alike: one operation, and sizes rounded up to the same powers of two.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
pub struct AutotuneKey {
    /// Name of the operation, such as `linear_forward_4bit`.
    pub op: String,
    /// Name of the weight's format, such as `nf4`.
    pub storage: String,
    /// Values that each output sums, rounded up.
    pub depth: u32,
    /// Columns of the result, rounded up.
    pub cols: u32,
    /// Rows of the result, rounded up. They stand last, so that the keys of one weight are neighbors in the order.
    pub rows: u32,
}

impl fmt::Display for AutotuneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, storage, depth, cols, rows } = self;
        write!(f, "{op} {storage} {rows} x {cols} x {depth}")
    }
}

impl ProblemSize {
    /// The key that this problem shares with those of about the same sizes.
    pub fn class(&self) -> AutotuneKey {
        let size = |n: u32| n.checked_next_power_of_two().unwrap_or(u32::MAX);
        AutotuneKey {
            op: self.op.to_owned(),
            storage: self.storage.to_owned(),
            depth: size(self.depth),
            cols: size(self.cols),
            rows: size(self.rows),
        }
    }

    /// Number of multiply-adds, `rows * cols * depth`.
    pub fn work(&self) -> u64 {
        (u64::from(self.rows) * u64::from(self.cols)).saturating_mul(u64::from(self.depth))
    }
}

/// The name of the fastest kernel for each key that was measured. For other keys the operations take their first variant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AutotuneTable(Arc<BTreeMap<AutotuneKey, String>>);

impl AutotuneTable {
    /// Sets the kernel of a key.
    pub fn insert(&mut self, class: AutotuneKey, kernel: impl Into<String>) {
        Arc::make_mut(&mut self.0).insert(class, kernel.into());
    }

    /// The kernel that was measured for this key itself.
    pub fn measured(&self, class: &AutotuneKey) -> Option<&str> {
        self.0.get(class).map(String::as_str)
    }

    /// The kernel for a key: its own, else that of the same weight for the next larger count of rows, else for the largest.
    pub fn get(&self, class: &AutotuneKey) -> Option<&str> {
        let of_weight = |rows| AutotuneKey { rows, ..class.clone() };
        let mut larger = self.0.range(class.clone()..=of_weight(u32::MAX));
        let mut smaller = self.0.range(of_weight(0)..class.clone());
        larger.next().or_else(|| smaller.next_back()).map(|(_, kernel)| kernel.as_str())
    }

    /// One readable line for each key.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(|(class, kernel)| format!("{class}: {kernel}")).collect()
    }
}

/// The devices on which kernels are measured before a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Tune {
    /// Measure on GPUs. Software adapters would spend more time on compiling than they would win.
    #[default]
    Auto,
    /// Measure on every adapter.
    On,
    /// Measure nothing: every operation takes its first variant.
    Off,
}

/// The choice of a device's kernels. It does not change the results of a run: all kernels to choose from give the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TuneOptions {
    /// The devices that are measured.
    pub tune: Tune,
    /// The directory in which measurements are kept for the next start.
    pub cache: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(rows: u32, cols: u32) -> AutotuneKey {
        ProblemSize { op: "linear_forward", storage: "f32", rows, cols, depth: 100 }.class()
    }

    #[test]
    fn sizes_up_to_a_power_of_two_are_alike() {
        assert_eq!(class(65, 128), class(128, 65));
        assert_ne!(class(64, 128), class(65, 128));
        assert_eq!((class(1, 1).rows, class(u32::MAX, 1).rows, class(1, 1).depth), (1, u32::MAX, 128));
    }

    #[test]
    fn a_count_of_rows_that_was_not_measured_takes_its_neighbors_kernel() {
        let mut autotune = AutotuneTable::default();
        assert_eq!(autotune.get(&class(64, 64)), None);
        autotune.insert(class(64, 64), "small");
        autotune.insert(class(1024, 64), "large");
        autotune.insert(class(256, 128), "other");
        let get = |rows| autotune.get(&class(rows, 64));
        assert_eq!(
            [get(1), get(64), get(65), get(1024), get(4096)],
            [Some("small"), Some("small"), Some("large"), Some("large"), Some("large")]
        );
        assert_eq!((autotune.get(&class(64, 256)), autotune.measured(&class(65, 64))), (None, None));
        // A copy keeps what it was.
        let copy = autotune.clone();
        autotune.insert(class(64, 64), "new");
        assert_eq!((copy.get(&class(64, 64)), autotune.get(&class(64, 64))), (Some("small"), Some("new")));
    }
}
