//! Test harness for measurements: command lists with memory of their own, which can be timed.

use super::commands::{Recorder, Scratch, params_bytes};
use super::device::Gpu;
use super::error::GpuError;
use super::execute::{Buffers, Prepared};
use super::memory::{Category, MemoryPlan, View};
use super::profile::Profile;

/// The least duration of a measurement, long enough to hide the host's overhead.
const MIN_SECONDS: f64 = 0.03;

/// The memory and commands of one measurement.
pub struct Harness {
    /// The buffers that the commands use.
    pub plan: MemoryPlan,
    /// The commands to be timed.
    pub rec: Recorder,
    /// Host data that is uploaded before the first run.
    pub uploads: Vec<(View, Vec<u8>)>,
}

impl Harness {
    /// A harness without commands, with 16 MiB of each kind of scratch.
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

    /// Allocates, uploads and compiles, and runs once to find how many runs make a measurement.
    ///
    /// # Errors
    /// Out of memory, or a failing device.
    pub async fn ready(self, gpu: &Gpu) -> Result<PreparedHarness, GpuError> {
        let mut harness = self.prepare(gpu).await?;
        harness.run(gpu).await?;
        harness.calibrate(gpu).await?;
        Ok(harness)
    }

    /// Allocates, uploads and compiles, and runs nothing. A measurement is one run until [`PreparedHarness::calibrate`].
    ///
    /// # Errors
    /// Out of memory, or a failing device.
    pub async fn prepare(mut self, gpu: &Gpu) -> Result<PreparedHarness, GpuError> {
        let uniform = self.plan.alloc(Category::Uploads, "dispatch parameters", params_bytes(&self.rec.commands));
        let buffers = self.allocate(gpu).await?;
        let list = gpu.prepare(&self.rec.commands, &buffers, uniform)?;
        Ok(PreparedHarness { list, buffers, times: 1 })
    }

    /// Allocates the memory and uploads the data.
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

/// A list that is ready to be timed.
pub struct PreparedHarness {
    list: Prepared,
    buffers: Buffers,
    times: u32,
}

impl PreparedHarness {
    /// Runs the list once, to its end.
    ///
    /// # Errors
    /// A failing device.
    pub async fn run(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        gpu.time(&self.list, &mut self.buffers, 1).await.map(drop)
    }

    /// Runs the list once to find how many runs make a measurement.
    ///
    /// # Errors
    /// A failing device.
    pub async fn calibrate(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let once = gpu.time(&self.list, &mut self.buffers, 1).await?;
        self.times = (MIN_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
        Ok(())
    }

    /// The bytes of a view.
    ///
    /// # Errors
    /// A failing device.
    pub async fn read(&self, gpu: &Gpu, view: View) -> Result<Vec<u8>, GpuError> {
        gpu.read(&self.buffers, view).await
    }

    /// Seconds of one run, as the mean over one measurement. GPUs with timestamps use these. Software adapters use the host's clock,
    /// which sees their threads better.
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

    /// Seconds of one run, the shortest of `repetitions` measurements.
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

    /// Seconds of one run by the host's clock with the cost of a submit, the shortest of `repetitions` runs.
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
