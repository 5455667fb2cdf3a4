//! The measured ceilings of an adapter.

use super::kernels::{self, FmaVariant};
use crate::gpu::{Capabilities, Category, Cooperative, Gpu, Harness, PreparedHarness};
use crate::{Error, Result};

use serde::{Deserialize, Serialize};

/// Repetitions of each measurement; the shortest counts.
pub(super) const REPETITIONS: usize = 7;

/// The best rates of an adapter, of which operations reach a share.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Multiply-adds in f32 registers, two operations each, in GFLOP/s.
    pub fma_gflops: f64,
    /// Products of cooperative matrices in registers, with f16 factors and f32 sums, in GFLOP/s. None where the device has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix_gflops: Option<f64>,
    /// Bytes read and written by a copy, in GB/s.
    pub copy_gb_per_s: f64,
    /// The time of one small dispatch in a prepared list, in microseconds.
    pub dispatch_us: f64,
}

/// The prepared kernels of the ceilings. They are timed again beside every operation: on a machine with other work, a ceiling that was
/// measured once may be that of a busier or a quieter time.
pub(crate) struct Probe {
    fma: PreparedHarness,
    flops: f64,
    matrices: Option<(PreparedHarness, f64)>,
    copy: PreparedHarness,
    moved: f64,
    pub ceilings: Ceilings,
}

impl Probe {
    pub(crate) async fn new(gpu: &Gpu) -> Result<Self> {
        let mut best: Option<(f64, f64, PreparedHarness)> = None;
        for variant in FmaVariant::ALL {
            let (flops, mut fma) = fma(gpu, variant).await?;
            let gflops = flops / fma.seconds(gpu, REPETITIONS).await? / 1e9;
            if best.as_ref().is_none_or(|(so_far, ..)| gflops > *so_far) {
                best = Some((gflops, flops, fma));
            }
        }
        let (mut matrix_gflops, mut matrices) = (None, None);
        if let Some(cooperative) = gpu.capabilities.cooperative {
            let (flops, mut products) = products(gpu, cooperative).await?;
            matrix_gflops = Some(flops / products.seconds(gpu, REPETITIONS).await? / 1e9);
            matrices = Some((products, flops));
        }
        let (moved, mut copy) = copy(gpu).await?;
        let copy_gb_per_s = moved / copy.seconds(gpu, REPETITIONS).await? / 1e9;
        let dispatch_us = dispatch_us(gpu).await?;
        let Some((fma_gflops, flops, fma)) = best.filter(|(gflops, ..)| gflops.is_finite()) else {
            return Err(Error::Training("the adapter's clock stood still during the bench".to_owned()));
        };
        let ceilings = Ceilings { fma_gflops, matrix_gflops, copy_gb_per_s, dispatch_us };
        Ok(Self { fma, flops, matrices, copy, moved, ceilings })
    }

    /// Times the kernels again. A ceiling is the best rate that was seen.
    pub(crate) async fn refresh(&mut self, gpu: &Gpu) -> Result<()> {
        let gflops = self.flops / self.fma.measure(gpu).await? / 1e9;
        let gb_per_s = self.moved / self.copy.measure(gpu).await? / 1e9;
        if let Some((products, flops)) = &mut self.matrices {
            let gflops = *flops / products.measure(gpu).await? / 1e9;
            self.ceilings.matrix_gflops = self.ceilings.matrix_gflops.map(|best| best.max(gflops));
        }
        self.ceilings.fma_gflops = self.ceilings.fma_gflops.max(gflops);
        self.ceilings.copy_gb_per_s = self.ceilings.copy_gb_per_s.max(gb_per_s);
        Ok(())
    }
}

/// The invocations that fill the adapter within one dispatch, and the turns of each.
fn chains(capabilities: &Capabilities, variant: FmaVariant) -> (u32, u32) {
    let wanted = if capabilities.cpu { 4096 } else { 1 << 20 };
    let held = u64::from(capabilities.max_workgroups) * u64::from(variant.wg_size) / 256 * 256;
    (wanted.min(u32::try_from(held).unwrap_or(u32::MAX)), 1024)
}

async fn fma(gpu: &Gpu, variant: FmaVariant) -> Result<(f64, PreparedHarness)> {
    let (invocations, turns) = chains(&gpu.capabilities, variant);
    let mut harness = Harness::new(gpu);
    let y = harness.plan.alloc(Category::Workspace, "sums", 16 * u64::from(invocations));
    let flops = kernels::fma(&mut harness.rec, variant, invocations, turns, 0.999, 0.001, y);
    Ok((flops, harness.ready(gpu).await?))
}

async fn products(gpu: &Gpu, cooperative: Cooperative) -> Result<(f64, PreparedHarness)> {
    let groups = if gpu.capabilities.cpu { 64 } else { 4096 };
    let mut harness = Harness::new(gpu);
    let y = harness.plan.alloc(Category::Workspace, "sums", 4 * kernels::matrix_sums(cooperative, groups));
    let flops = kernels::matrices(&mut harness.rec, cooperative, groups, 1024, 0.03, y);
    Ok((flops, harness.ready(gpu).await?))
}

async fn copy(gpu: &Gpu) -> Result<(f64, PreparedHarness)> {
    let mut harness = Harness::new(gpu);
    let bytes = (64u64 << 20).min(gpu.capabilities.max_binding_bytes);
    let [x, y] = ["source", "target"].map(|label| harness.plan.alloc(Category::Workspace, label, bytes));
    let moved = kernels::copy(&mut harness.rec, x, y);
    Ok((moved, harness.ready(gpu).await?))
}

async fn dispatch_us(gpu: &Gpu) -> Result<f64> {
    const DISPATCHES: usize = 1000;
    let mut harness = Harness::new(gpu);
    let small = ["x", "y"].map(|label| harness.plan.alloc(Category::Workspace, label, 256));
    for _ in 0..DISPATCHES {
        kernels::copy(&mut harness.rec, small[0], small[1]);
    }
    // The host's clock sees the cost of a dispatch beside its own work.
    Ok(harness.ready(gpu).await?.wall_time(gpu, REPETITIONS).await? / DISPATCHES as f64 * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_fits_one_dispatch() {
        for (cpu, variant) in [false, true].into_iter().flat_map(|cpu| FmaVariant::ALL.map(|variant| (cpu, variant))) {
            let capabilities = Capabilities { cpu, ..Capabilities::BASELINE };
            let (invocations, _) = chains(&capabilities, variant);
            assert!(invocations.is_multiple_of(256) && invocations >= 4096, "{variant:?}: {invocations}");
            assert!(invocations / variant.wg_size <= capabilities.max_workgroups, "{variant:?}: {invocations}");
        }
    }
}
