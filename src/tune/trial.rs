//! The trial of one problem: times every variant of the kernel for it.

use crate::Result;
use crate::gpu::{Buffers, Category, Gpu, GpuError, Harness, PARAMS_STRIDE, Prepared, ProblemSize, View};
use crate::ops::linear::{self, Operands, Variant};
use crate::random::{Stream, uniform};

/// The most multiply-adds of a measurement. They fill any GPU, and take a slow one some hundredths of a second. A larger problem is
/// measured in part.
const MAX_WORK: u64 = 1 << 32;
/// The most values of one operand, which are uploaded.
const MAX_VALUES: u64 = 1 << 24;
/// The depth that hides the beginning and the end of a contraction.
const LONG_DEPTH: u32 = 512;
/// The least duration of a measurement, which a browser's coarse clock can see.
const MIN_SECONDS: f64 = 2e-3;
const MAX_DISPATCHES: u32 = 64;
/// Measurements of each variant, taken in turn. The shortest counts.
const ROUNDS: usize = 3;
/// A variant that is this many times slower than the fastest leaves the trial.
const DROP_RATIO: f64 = 2.0;
/// Another variant replaces the first one only if it takes less than this share of its time: more than chance explains.
const MARGIN: f64 = 0.97;

struct TimedVariant {
    variant: Variant,
    list: Prepared,
    seconds: f64,
}

/// The name of the fastest variant on random data. None where no variant runs, or the memory does not suffice. A variant that the
/// driver refuses is left out.
///
/// # Errors
/// A lost device.
pub(super) async fn fastest(gpu: &Gpu, problem: &ProblemSize) -> Result<Option<&'static str>> {
    let problem = bounded(*problem);
    let mut harness = Harness::new(gpu);
    let Some(operands) = Operands::plan(&mut harness.plan, &problem) else { return Ok(None) };
    let noise: Vec<f32> = (0..1 << 16).map(|i| uniform(0, Stream::Sampling, 3, i) - 0.5).collect();
    let noise: &[u8] = bytemuck::cast_slice(&noise);
    let x = operands.x.view;
    harness.uploads.push((x, noise.iter().copied().cycle().take(x.bytes as usize).collect()));
    let scratch = linear::panel_bytes(&gpu.capabilities, [operands.workspace_query()]);
    harness.rec.scratch.weight_panel = harness.plan.alloc(Category::Workspace, "trial scratch", scratch);
    let params = u64::from(MAX_DISPATCHES) * linear::DISPATCHES * PARAMS_STRIDE;
    let uniform = harness.plan.alloc(Category::Uploads, "dispatch parameters", params);
    let mut buffers = match harness.allocate(gpu).await {
        // A device without memory for the trial is not measured. The run itself reports if it does not fit either.
        Err(GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. }) => return Ok(None),
        allocated => allocated?,
    };
    let measured = race(gpu, &problem, &harness, &operands, uniform, &mut buffers).await;
    // A browser would keep the buffers until its garbage is collected.
    buffers.destroy();
    Ok(measured?)
}

async fn race(
    gpu: &Gpu,
    problem: &ProblemSize,
    harness: &Harness,
    operands: &Operands,
    uniform: View,
    buffers: &mut Buffers,
) -> Result<Option<&'static str>, GpuError> {
    operands.weight.fill_randomly(gpu, buffers, 0).await?;
    let list = |variant: Variant, dispatches: u32, buffers: &Buffers| {
        let mut rec = harness.rec.clone();
        (0..dispatches).for_each(|_| operands.record(&mut rec, variant));
        gpu.prepare(&rec.commands, buffers, uniform)
    };
    let mut timed = Vec::new();
    for variant in Variant::all(&gpu.capabilities, problem) {
        let ready = match list(variant, 1, buffers) {
            Ok(list) => seconds(gpu, &list, buffers).await.map(|seconds| TimedVariant { variant, list, seconds }),
            Err(e) => Err(e),
        };
        match ready {
            Ok(one) => timed.push(one),
            Err(GpuError::Validation(_)) => {}
            Err(e) => return Err(e),
        }
    }
    let shortest = |timed: &[TimedVariant]| timed.iter().map(|c| c.seconds).fold(f64::INFINITY, f64::min);
    let dispatches = (MIN_SECONDS / shortest(&timed)).ceil().clamp(1.0, f64::from(MAX_DISPATCHES)) as u32;
    for one in &mut timed {
        // The first run does not count: the device may have been asleep.
        one.seconds = f64::INFINITY;
        one.list = list(one.variant, dispatches, buffers)?;
    }
    for _ in 0..ROUNDS {
        for one in &mut timed {
            one.seconds = one.seconds.min(seconds(gpu, &one.list, buffers).await?);
        }
        let limit = DROP_RATIO * shortest(&timed);
        timed.retain(|one| one.seconds <= limit);
    }
    let fastest = timed.iter().reduce(|best, other| if other.seconds < MARGIN * best.seconds { other } else { best });
    Ok(fastest.map(|one| one.variant.name()))
}

/// Seconds of one run, by the device's clock where it has one. Software adapters use the host's clock, which sees their threads
/// better.
async fn seconds(gpu: &Gpu, list: &Prepared, buffers: &mut Buffers) -> Result<f64, GpuError> {
    if !gpu.capabilities.cpu
        && let Some(seconds) = gpu.time_on_device(list, buffers).await?
        && seconds > 0.0
    {
        return Ok(seconds);
    }
    gpu.time(list, buffers, 1).await
}

/// The problem, or a part of it that is cheap enough. The depth is cut first, which keeps the count of workgroups.
fn bounded(mut problem: ProblemSize) -> ProblemSize {
    let half = |n: u32| if n.is_multiple_of(64) { (n / 2).next_multiple_of(64) } else { n / 2 };
    let values = |p: &ProblemSize| {
        [(p.rows, p.depth), (p.cols, p.depth), (p.rows, p.cols)].map(|(a, b)| u64::from(a) * u64::from(b))
    };
    while problem.work() > MAX_WORK || values(&problem).into_iter().any(|count| count > MAX_VALUES) {
        if problem.depth > LONG_DEPTH {
            problem.depth = half(problem.depth);
        } else if problem.cols >= problem.rows {
            problem.cols = half(problem.cols);
        } else {
            problem.rows = half(problem.rows);
        }
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(rows: u32, cols: u32, depth: u32) -> [u32; 3] {
        let cut = bounded(ProblemSize { op: "linear_forward", storage: "f32", rows, cols, depth });
        [cut.rows, cut.cols, cut.depth]
    }

    #[test]
    fn large_problems_are_cut_to_ones_that_take_the_same_kernel() {
        assert_eq!(sizes(1024, 2048, 2048), [1024, 2048, 2048]);
        assert_eq!(sizes(1, 128_256, 4096), [1, 32_064, 512]);
        assert_eq!(sizes(65_536, 16, 2048), [32_768, 16, 512]);
        assert_eq!(sizes(8192, 8192, 11_008), [4096, 2048, 384]);
        for (rows, cols, depth) in [(4096, 4096, 11_008), (u32::MAX, u32::MAX, u32::MAX), (32, 152_064, 3584)] {
            let [_, cut_cols, cut_depth] = sizes(rows, cols, depth);
            assert_eq!((cols % 64 == 0, depth % 64 == 0), (cut_cols % 64 == 0, cut_depth % 64 == 0));
        }
    }
}
