//! Whether kernels are measured before they are used.

use std::path::PathBuf;

use clap::Args;
use loraine::gpu::{Tune, TuneOptions};

#[derive(Args)]
pub struct TuneArgs {
    /// Measure which kernels are the fastest here, for two seconds at most, and remember it (auto: on GPUs; off: the usual ones). The
    /// results are the same to the bit
    #[arg(long, value_enum, default_value = "auto", help_heading = "Device")]
    tune: Tune,
}

impl TuneArgs {
    pub fn options(&self, cache: Option<PathBuf>) -> TuneOptions {
        TuneOptions { tune: self.tune, cache }
    }
}
