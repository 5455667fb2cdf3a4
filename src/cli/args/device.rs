//! The flags of every command that computes on a GPU and may keep what it prepared for it.

use anyhow::Result;
use clap::Args;
use loraine::gpu::Gpu;

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
    /// The chosen GPU, with kernels measured as `--tune` says and remembered in the cache.
    pub fn open(&self) -> Result<Gpu> {
        self.gpu.open_tuned(self.tune.options(self.cache.directory()))
    }
}
