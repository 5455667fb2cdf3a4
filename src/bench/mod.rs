//! The bench: an adapter's ceilings, the operations at real shapes as shares of them, and whole training steps on models of random
//! weights. Everything is measured in one go on one adapter, so that the ratios hold whatever else the machine is doing.

mod ceilings;
mod figures;
mod lengths;
mod operations;
mod steps;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::gpu::{Buffers, Category, Gpu, MemoryPlan, Prepared, Profile, Recorder, Scratch, View, params_bytes};
use crate::train::settings::RunSettings;

pub use ceilings::Ceilings;
pub use figures::{Figure, Peer, figures};
pub use lengths::LengthResult;
pub use operations::OperationResult;
pub use steps::{OperationShare, Shape, StepResult};

/// Repetitions of each measurement; the shortest counts.
const REPETITIONS: usize = 7;
/// Each repetition is long enough that the host's part does not show.
const MIN_SECONDS: f64 = 0.03;

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

/// Runs the whole bench; `progress` hears what is measured next. `quick` leaves out the larger shapes, `settings` are
/// those of the training steps.
///
/// # Errors
/// A failing device, or too little memory for a shape.
pub async fn run(
    gpu: Gpu,
    shapes: &[Shape],
    settings: &RunSettings,
    quick: bool,
    mut progress: impl FnMut(&str),
) -> Result<Report> {
    progress("ceilings");
    let mut probe = ceilings::Probe::new(&gpu).await?;
    let mut measured = Vec::new();
    for case in operations::cases(quick) {
        progress(&format!("{} {}", case.name, case.shape));
        measured.push(case.measure(&gpu, &mut probe).await?);
    }
    let (name, driver) = (gpu.adapter.name.clone(), format!("{} {}", gpu.adapter.driver, gpu.adapter.driver_info));
    let lengths = lengths::measure(gpu.target)?;
    let mut trained = Vec::new();
    // Each model has its own engine, which gives the device back when it is done.
    let mut device = gpu;
    for shape in shapes {
        progress(&format!("training steps of {} {}", shape.name, shape.batch()));
        let step;
        (step, device) = steps::measure(device, shape, settings).await?;
        probe.again(&device).await?;
        trained.push(step);
    }
    let ceilings = probe.ceilings;
    let operations = measured.into_iter().map(|case| case.result(&ceilings)).collect();
    let steps = trained.into_iter().map(|step| step.with_ceiling(&ceilings)).collect();
    Ok(Report { gpu: name, driver, ceilings, operations, steps, lengths })
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

    /// Allocates, uploads, compiles, and runs once to see how many runs make a measurement.
    async fn ready(mut self, gpu: &Gpu) -> Result<Measured> {
        let bytes = params_bytes(&self.rec.commands);
        let uniform = self.plan.alloc(Category::Uploads, "dispatch parameters", bytes);
        let mut buffers = Buffers::default();
        gpu.allocate(&self.plan, &mut buffers).await?;
        for (view, data) in &self.uploads {
            gpu.write(&buffers, *view, data);
        }
        let list = gpu.prepare(&self.rec.commands, &buffers, uniform)?;
        gpu.time(&list, &mut buffers, 1).await?;
        let once = gpu.time(&list, &mut buffers, 1).await?;
        let times = (MIN_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
        Ok(Measured { list, buffers, times })
    }
}

/// A list made ready to be timed.
struct Measured {
    list: Prepared,
    buffers: Buffers,
    times: u32,
}

impl Measured {
    /// Seconds of one run, the mean of as many as one measurement takes: by the GPU's own timestamps where they are, save on
    /// software adapters, whose threads the host's clock sees better.
    async fn once(&mut self, gpu: &Gpu) -> Result<f64> {
        if gpu.adapter.timestamps && !gpu.target.cpu {
            let mut profile = Profile::default();
            for _ in 0..self.times {
                gpu.run_profiled(&self.list, &mut self.buffers, &mut profile).await?;
            }
            let seconds: f64 = profile.ops.values().map(|(seconds, _)| seconds).sum();
            return Ok(seconds / f64::from(self.times));
        }
        Ok(gpu.time(&self.list, &mut self.buffers, self.times).await? / f64::from(self.times))
    }

    async fn seconds(&mut self, gpu: &Gpu) -> Result<f64> {
        let mut shortest = f64::INFINITY;
        for _ in 0..REPETITIONS {
            shortest = shortest.min(self.once(gpu).await?);
        }
        Ok(shortest)
    }

    async fn by_clock(&mut self, gpu: &Gpu) -> Result<f64> {
        let mut shortest = f64::INFINITY;
        for _ in 0..REPETITIONS {
            shortest = shortest.min(gpu.time(&self.list, &mut self.buffers, 1).await?);
        }
        Ok(shortest)
    }
}
