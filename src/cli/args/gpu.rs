//! Flags that choose a GPU.

use clap::Args;
use loraine::gpu::{Gpu, GpuOptions, MatrixUnits, Tune, TuneOptions};

use super::cache;

/// Choice of the GPU.
#[derive(Args, Clone)]
pub struct GpuArgs {
    /// GPU to run on: part of its name, or its index in `loraine info`; train and eval take several, such as 0,1 [default: the most capable]
    #[arg(long, value_name = "NAME|INDEX", env = "LORAINE_GPU", help_heading = "Device")]
    pub gpu: Option<String>,
    /// on uses the GPU's tensor cores (matrix units) for linear layers, with scaled factors in f16 and sums in f32; off computes everything in f32
    #[arg(long, value_enum, default_value = "off", env = "LORAINE_MATRIX_UNITS", help_heading = "Device")]
    pub matrix_units: MatrixUnits,
    /// Let the driver check every access of a kernel to memory; takes time, and changes no result
    #[arg(long, help_heading = "Device")]
    pub checked_shaders: bool,
}

impl GpuArgs {
    /// Opens the GPU and uses the cached kernel choices of earlier runs.
    pub fn open(&self) -> anyhow::Result<Gpu> {
        self.open_tuned(TuneOptions { tune: Tune::Auto, cache: cache::directory() })
    }

    /// The GPUs of a list of indices such as `0,1`, with the other choices of this one; else this choice alone.
    pub fn each(&self) -> Vec<Self> {
        let listed: Vec<&str> = self.gpu.iter().flat_map(|list| list.split(',')).map(str::trim).collect();
        let is_index = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        match listed.len() > 1 && listed.iter().all(is_index) {
            true => listed.iter().map(|index| Self { gpu: Some((*index).to_owned()), ..self.clone() }).collect(),
            false => vec![self.clone()],
        }
    }

    pub fn open_tuned(&self, tuning: TuneOptions) -> anyhow::Result<Gpu> {
        let options = GpuOptions {
            adapter: self.gpu.clone(),
            matrix_units: self.matrix_units,
            checked_shaders: self.checked_shaders,
            tuning,
        };
        Ok(pollster::block_on(Gpu::open(&options))?)
    }
}
