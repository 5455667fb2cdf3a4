//! The report of an examination, which is its JSON file too.

use serde::Serialize;

use super::subject::Subject;
use super::trial::Amount;
use crate::bench::Ceilings;
use crate::gpu::{AdapterSummary, Gpu};

/// A kernel below this share of what its adapter can do is suspiciously slow, if its time is long enough to be measured well.
const SLOW_SHARE: f64 = 0.02;
const LONG_MS: f64 = 0.2;
/// A dispatch that takes longer than this makes a step slow by itself.
const SLOW_DISPATCH_US: f64 = 60.0;
/// The bandwidth below which a discrete GPU is likely to work in the memory of the host.
const SLOW_COPY_GB_PER_S: f64 = 40.0;

/// How a case ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every result is within its bound.
    Right,
    /// A result is not.
    Wrong,
    /// The driver refused a kernel, or the device failed.
    #[default]
    Refused,
    /// The device was lost.
    Lost,
    /// The device has too little memory for the case.
    Skipped,
}

/// The result of one case.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Check {
    /// The operation and its shape.
    pub name: String,
    /// The kernels with the constants of their variants.
    pub kernels: Vec<String>,
    /// How the case ended.
    pub outcome: Outcome,
    /// The relative error `||got - want|| / ||want||` of the result that is nearest to its bound, or beyond it; None where it is not
    /// finite, or nothing was compared.
    pub error: Option<f64>,
    /// The bound of that error.
    pub bound: f64,
    /// The faults, as sentences; empty if there are none.
    pub problem: String,
    /// The time of one run in milliseconds; 0 without a measurement.
    pub ms: f64,
    /// GFLOP/s of the case, 0 where it moves bytes alone.
    pub gflops: f64,
    /// GB/s of the bytes that have to be read and written once.
    pub gb_per_s: f64,
    /// The time that the adapter's ceilings allow as a share of the time it took, 0 to 1.
    pub share_of_ceiling: f64,
    /// True if that share is suspiciously low.
    pub slow: bool,
}

impl Check {
    pub(super) fn time(&mut self, seconds: f64, amount: Amount, ceilings: &Ceilings) {
        let by_matrices = self.kernels.iter().any(|kernel| kernel.starts_with("linear_cooperative"));
        let matrices = ceilings.matrix_gflops.filter(|_| amount.linear && by_matrices);
        let gflops = matrices.unwrap_or(ceilings.fma_gflops);
        let dispatches = self.kernels.len() as f64 * ceilings.dispatch_us * 1e-6;
        let least = (amount.flops / gflops / 1e9).max(amount.bytes / ceilings.copy_gb_per_s / 1e9) + dispatches;
        self.ms = 1e3 * seconds;
        self.gflops = amount.flops / seconds / 1e9;
        self.gb_per_s = amount.bytes / seconds / 1e9;
        self.share_of_ceiling = (least / seconds).min(1.0);
        self.slow = self.share_of_ceiling < SLOW_SHARE && self.ms > LONG_MS;
    }

    /// True if the case shows a fault of the kernels or of the driver.
    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Wrong | Outcome::Refused | Outcome::Lost)
    }
}

/// The report of one examination.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of loraine.
    pub version: &'static str,
    /// The operating system and the processor's architecture.
    pub system: String,
    /// The adapter with its driver, limits and features.
    pub adapter: AdapterSummary,
    /// True if linear layers could use cooperative matrices.
    pub matrix_units: bool,
    /// True if the driver checked every access of the kernels.
    pub checked_shaders: bool,
    /// Name of the model whose sizes were taken.
    pub model: String,
    /// Rows of its micro-batch.
    pub rows: usize,
    /// The best rates of the adapter.
    pub ceilings: Ceilings,
    /// The cases in their order.
    pub checks: Vec<Check>,
    /// Kernels of this model's steps that no case has.
    pub unchecked: Vec<String>,
    /// The lines that a reader should see first: faults, then what is slow, then what may be so by the machine's set-up.
    pub findings: Vec<String>,
}

impl Report {
    pub(super) fn new(
        gpu: &Gpu,
        subject: &Subject,
        ceilings: Ceilings,
        checks: Vec<Check>,
        unchecked: Vec<String>,
    ) -> Self {
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            adapter: gpu.adapter.clone(),
            matrix_units: gpu.capabilities.cooperative.is_some(),
            checked_shaders: gpu.options().checked_shaders,
            model: subject.name.clone(),
            rows: subject.rows,
            ceilings,
            checks,
            unchecked,
            findings: Vec::new(),
        };
        report.findings = report.find();
        report
    }

    /// True if no case shows a fault.
    pub fn healthy(&self) -> bool {
        !self.checks.iter().any(Check::failed)
    }

    fn find(&self) -> Vec<String> {
        let mut findings = Vec::new();
        for check in self.checks.iter().filter(|check| check.failed()) {
            let kernels = if check.kernels.is_empty() { "no kernel ran".to_owned() } else { check.kernels.join(", ") };
            let verdict = match check.outcome {
                Outcome::Wrong => "wrong result",
                Outcome::Lost => "device lost",
                _ => "refused",
            };
            findings.push(format!("{verdict}: {}: {} ({kernels})", check.name, check.problem));
        }
        for check in self.checks.iter().filter(|check| check.slow) {
            let share = 100.0 * check.share_of_ceiling;
            let (name, ms, kernels) = (&check.name, check.ms, check.kernels.join(", "));
            findings.push(format!("slow: {name}: {ms:.2} ms, {share:.1} % of what the adapter can do ({kernels})"));
        }
        for check in self.checks.iter().filter(|check| check.outcome == Outcome::Skipped) {
            findings.push(format!("skipped: {}: {}", check.name, check.problem));
        }
        let (adapter, ceilings) = (&self.adapter, &self.ceilings);
        if adapter.kind == "cpu" {
            findings.push("the adapter is a software driver: results are right, and steps slow".to_owned());
        } else {
            if ceilings.dispatch_us > SLOW_DISPATCH_US {
                let us = ceilings.dispatch_us;
                findings.push(format!("a dispatch takes {us:.0} us, so that small models wait for the driver"));
            }
            if !adapter.timestamps {
                findings.push("the driver has no timestamps: times hold the cost of submits too".to_owned());
            }
        }
        if adapter.kind == "discrete" && ceilings.copy_gb_per_s < SLOW_COPY_GB_PER_S {
            let rate = ceilings.copy_gb_per_s;
            findings.push(format!(
                "{rate:.0} GB/s is the speed of the host's memory: another program may fill that of the GPU"
            ));
        }
        if !self.unchecked.is_empty() {
            findings.push(format!("kernels of this model without a check: {}", self.unchecked.join(", ")));
        }
        findings
    }
}
