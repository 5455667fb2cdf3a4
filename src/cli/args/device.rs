//! Flags of commands that compute on a GPU: the GPU, autotuning and the cache.

use anyhow::Result;
use clap::Args;
use loraine::gpu::{Gpu, TuneOptions};

use super::cache::CacheArgs;
use super::gpu::GpuArgs;
use super::tune::TuneArgs;

#[derive(Args)]
pub struct DeviceArgs {
    #[command(flatten)]
    pub gpu: GpuArgs,
    #[command(flatten)]
    pub tune: TuneArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
}

impl DeviceArgs {
    /// Opens the chosen GPU with the settings of `--tune` and of the cache.
    pub fn open(&self) -> Result<Gpu> {
        self.gpu.open_tuned(self.tuning())
    }

    /// The settings of `--tune` and of the cache.
    pub fn tuning(&self) -> TuneOptions {
        self.tune.options(self.cache.directory())
    }
}
