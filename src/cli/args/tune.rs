//! Flags for autotuning kernels.

use std::path::PathBuf;

use clap::Args;
use loraine::gpu::{Tune, TuneOptions};

#[derive(Args)]
pub struct TuneArgs {
    /// Measure the fastest kernels for at most two seconds and remember them (auto: on GPUs only; off: default kernels). Results do not
    /// change, to the bit
    #[arg(long, value_enum, default_value = "auto", help_heading = "Device")]
    tune: Tune,
}

impl TuneArgs {
    pub fn options(&self, cache: Option<PathBuf>) -> TuneOptions {
        TuneOptions { tune: self.tune, cache }
    }
}
