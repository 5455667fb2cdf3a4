//! Lists of their own memory, to be timed.

use super::commands::{Recorder, Scratch, params_bytes};
use super::device::Gpu;
use super::error::GpuError;
use super::execute::{Buffers, Prepared};
use super::memory::{Category, MemoryPlan, View};
use super::profile::Profile;

/// Each measurement is long enough that the host's part does not show.
const MIN_SECONDS: f64 = 0.03;

/// One experiment's memory and commands.
pub struct Harness {
    pub plan: MemoryPlan,
    pub rec: Recorder,
    /// Host data to upload before the first run.
    pub uploads: Vec<(View, Vec<u8>)>,
}

impl Harness {
    pub fn new(gpu: &Gpu) -> Self {
        let mut plan = MemoryPlan::new();
        let mut buffer = |label: &str, bytes| plan.alloc(Category::Workspace, label, bytes);
        let scratch = Scratch {
            weight_panel: buffer("decoded weight panel", 16 << 20),
            partials: buffer("partial sums", 16 << 20),
        };
        let unused = ["unused binding", "unused written binding"].map(|label| buffer(label, 16));
        let rec = Recorder::new(gpu.capabilities, unused[0], unused[1], scratch);
        Self { plan, rec, uploads: Vec::new() }
    }

    /// Allocates, uploads, compiles, and runs once to see how many runs make a measurement.
    ///
    /// # Errors
    /// Out of memory, or a failing device.
    pub async fn ready(mut self, gpu: &Gpu) -> Result<PreparedHarness, GpuError> {
        let uniform = self.plan.alloc(Category::Uploads, "dispatch parameters", params_bytes(&self.rec.commands));
        let mut buffers = self.allocate(gpu).await?;
        let list = gpu.prepare(&self.rec.commands, &buffers, uniform)?;
        gpu.time(&list, &mut buffers, 1).await?;
        let once = gpu.time(&list, &mut buffers, 1).await?;
        let times = (MIN_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
        Ok(PreparedHarness { list, buffers, times })
    }

    /// Makes the memory real, and uploads.
    ///
    /// # Errors
    /// Out of memory, or a failing device.
    pub async fn allocate(&self, gpu: &Gpu) -> Result<Buffers, GpuError> {
        let mut buffers = Buffers::default();
        gpu.allocate(&self.plan, &mut buffers).await?;
        for (view, data) in &self.uploads {
            gpu.write(&buffers, *view, data);
        }
        Ok(buffers)
    }
}

/// A list made ready to be timed.
pub struct PreparedHarness {
    list: Prepared,
    buffers: Buffers,
    times: u32,
}

impl PreparedHarness {
    /// Seconds of one run, the mean of as many as one measurement takes: by the GPU's own timestamps where they are, save on
    /// software adapters, whose threads the host's clock sees better.
    ///
    /// # Errors
    /// A failing device.
    pub async fn measure(&mut self, gpu: &Gpu) -> Result<f64, GpuError> {
        if gpu.adapter.timestamps && !gpu.capabilities.cpu {
            let mut profile = Profile::default();
            for _ in 0..self.times {
                gpu.run_profiled(&self.list, &mut self.buffers, &mut profile).await?;
            }
            let seconds: f64 = profile.ops.values().map(|(seconds, _)| seconds).sum();
            return Ok(seconds / f64::from(self.times));
        }
        Ok(gpu.time(&self.list, &mut self.buffers, self.times).await? / f64::from(self.times))
    }

    /// The shortest of some measurements.
    ///
    /// # Errors
    /// A failing device.
    pub async fn seconds(&mut self, gpu: &Gpu, repetitions: usize) -> Result<f64, GpuError> {
        let mut shortest = f64::INFINITY;
        for _ in 0..repetitions {
            shortest = shortest.min(self.measure(gpu).await?);
        }
        Ok(shortest)
    }

    /// The same by the host's clock, what a submit costs included.
    ///
    /// # Errors
    /// A failing device.
    pub async fn wall_time(&mut self, gpu: &Gpu, repetitions: usize) -> Result<f64, GpuError> {
        let mut shortest = f64::INFINITY;
        for _ in 0..repetitions {
            shortest = shortest.min(gpu.time(&self.list, &mut self.buffers, 1).await?);
        }
        Ok(shortest)
    }
}
