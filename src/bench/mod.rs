//! The bench: an adapter's ceilings, the operations at real shapes as shares of them, and whole training steps on models of random
//! weights. Everything is measured in one go on one adapter, so that the ratios hold whatever else the machine is doing.

mod operations;
mod steps;

use serde::{Deserialize, Serialize};

use crate::gpu::{Buffers, Category, Gpu, MemoryPlan, Recorder, Scratch, View, params_bytes};
use crate::ops::ceiling::{self, FmaForm};
use crate::{Error, Result};

pub use steps::Shape;

/// Repetitions of each measurement; the median counts.
const REPETITIONS: usize = 5;
/// Each repetition is long enough that the host's part does not show.
const MIN_SECONDS: f64 = 0.05;

/// What the adapter can do at best.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Multiply-adds in f32 registers, two operations each.
    pub fma_gflops: f64,
    /// Bytes read and written by a copy.
    pub copy_gb_per_s: f64,
    /// One small dispatch in a prepared list.
    pub dispatch_us: f64,
}

/// One operation at one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationResult {
    pub name: String,
    pub shape: String,
    pub ms: f64,
    /// GFLOP/s for operations bound by arithmetic, GB/s for those bound by memory.
    pub achieved: f64,
    pub unit: String,
    pub share_of_ceiling: f64,
}

/// Training steps of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepResult {
    pub model: String,
    pub batch: String,
    pub ms: f64,
    pub tokens_per_s: f64,
    /// Operations of the model alone, recomputation and adapter aside, per second.
    pub gflops: f64,
    pub share_of_ceiling: f64,
    /// Time in which the host made ready and submitted a step.
    pub host_ms: f64,
    pub gpu_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub gpu: String,
    pub driver: String,
    pub ceilings: Ceilings,
    pub operations: Vec<OperationResult>,
    pub steps: Vec<StepResult>,
}

/// Runs the whole bench; `progress` hears what is measured next. `quick` leaves out the larger shapes.
///
/// # Errors
/// A failing device, or too little memory for a shape.
pub async fn run(gpu: Gpu, shapes: &[Shape], quick: bool, mut progress: impl FnMut(&str)) -> Result<Report> {
    progress("ceilings");
    let ceilings = ceilings(&gpu).await?;
    let mut operations = Vec::new();
    for case in operations::cases(quick) {
        progress(&format!("{} {}", case.name, case.shape));
        operations.push(case.measure(&gpu, &ceilings).await?);
    }
    let (name, driver) = (gpu.adapter.name.clone(), format!("{} {}", gpu.adapter.driver, gpu.adapter.driver_info));
    let mut steps = Vec::new();
    let mut gpu = Some(gpu);
    for shape in shapes {
        progress(&format!("training steps of {}", shape.name));
        // Each model has its own engine, which gives the device back when it is done.
        if let Some(device) = gpu.take() {
            let (result, device) = steps::measure(device, shape, &ceilings).await?;
            steps.push(result);
            gpu = Some(device);
        }
    }
    Ok(Report { gpu: name, driver, ceilings, operations, steps })
}

/// One experiment's memory and commands.
struct Bed {
    plan: MemoryPlan,
    rec: Recorder,
    /// Host data to upload before the first run.
    uploads: Vec<(View, Vec<u8>)>,
}

impl Bed {
    fn new(gpu: &Gpu) -> Self {
        let mut plan = MemoryPlan::new();
        let mut buffer = |label: &str, bytes| plan.alloc(Category::Workspace, label, bytes);
        let scratch = Scratch {
            weight_panel: buffer("decoded weight panel", 16 << 20),
            partials: buffer("partial sums", 16 << 20),
        };
        let unused = ["unused binding", "unused written binding"].map(|label| buffer(label, 16));
        let rec = Recorder::new(gpu.target, unused[0], unused[1], scratch);
        Self { plan, rec, uploads: Vec::new() }
    }

    /// Median seconds of one run of the recorded list.
    async fn seconds(mut self, gpu: &Gpu) -> Result<f64> {
        let bytes = params_bytes(&self.rec.commands);
        let uniform = self.plan.alloc(Category::Uploads, "dispatch parameters", bytes);
        let mut buffers = Buffers::default();
        gpu.allocate(&self.plan, &mut buffers).await?;
        for (view, data) in &self.uploads {
            gpu.write(&buffers, *view, data);
        }
        let list = gpu.prepare(&self.rec.commands, &buffers, uniform)?;
        // The first run compiles; the second says how many make a measurement.
        gpu.time(&list, &mut buffers, 1).await?;
        let once = gpu.time(&list, &mut buffers, 1).await?;
        let times = (MIN_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
        let mut seconds = Vec::new();
        for _ in 0..REPETITIONS {
            seconds.push(gpu.time(&list, &mut buffers, times).await? / f64::from(times));
        }
        Ok(median(seconds))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures the adapter's own limits.
pub async fn ceilings(gpu: &Gpu) -> Result<Ceilings> {
    let (invocations, turns) = if gpu.target.cpu { (4096, 1024) } else { (1 << 20, 1024) };
    let mut fma_gflops = 0.0f64;
    for form in FmaForm::ALL {
        let mut bed = Bed::new(gpu);
        let y = bed.plan.alloc(Category::Workspace, "sums", 16 * u64::from(invocations));
        let flops = ceiling::fma(&mut bed.rec, form, invocations, turns, 0.999, 0.001, y);
        fma_gflops = fma_gflops.max(flops / bed.seconds(gpu).await? / 1e9);
    }
    let mut bed = Bed::new(gpu);
    let bytes = (64u64 << 20).min(gpu.target.max_binding_bytes);
    let (x, y) =
        (bed.plan.alloc(Category::Workspace, "source", bytes), bed.plan.alloc(Category::Workspace, "target", bytes));
    let moved = ceiling::copy(&mut bed.rec, x, y);
    let copy_gb_per_s = moved / bed.seconds(gpu).await? / 1e9;

    let mut bed = Bed::new(gpu);
    let small = ["x", "y"].map(|label| bed.plan.alloc(Category::Workspace, label, 256));
    const DISPATCHES: usize = 1000;
    for _ in 0..DISPATCHES {
        ceiling::copy(&mut bed.rec, small[0], small[1]);
    }
    let dispatch_us = bed.seconds(gpu).await? / DISPATCHES as f64 * 1e6;
    if !(fma_gflops.is_finite() && copy_gb_per_s.is_finite()) {
        return Err(Error::Training("the adapter's clock stood still during the bench".to_owned()));
    }
    Ok(Ceilings { fma_gflops, copy_gb_per_s, dispatch_us })
}
