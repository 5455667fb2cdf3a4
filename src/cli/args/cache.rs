//! The cache: 4-bit copies of large models, and which kernels a device runs fastest.

use std::path::PathBuf;

use clap::Args;
use loraine::model::source::{CacheSettings, Source};

use crate::cli::show::parse_bytes;

/// A model of fewer bytes is quantized in no time.
const MIN_BYTES: u64 = 1 << 30;

#[derive(Args)]
pub struct CacheArgs {
    /// Quantize the model and measure the kernels anew, and keep neither (4-bit copies of models over 1 GiB and what was measured lie
    /// in ~/.cache/loraine, or $LORAINE_CACHE)
    #[arg(long, help_heading = "Device")]
    no_cache: bool,
    /// What the 4-bit copies may take together, such as 20GB: beyond it, those unused the longest are removed
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "50GB", env = "LORAINE_CACHE_SIZE")]
    #[arg(help_heading = "Device", hide_env_values = true)]
    cache_size: u64,
}

impl CacheArgs {
    /// Lets loading use the cache, unless the user has said no.
    pub fn apply(&self, source: &mut Source) {
        source.cache =
            self.directory().map(|dir| CacheSettings { dir, min_bytes: MIN_BYTES, max_bytes: self.cache_size });
    }

    /// Where the cache is, unless the user wants none.
    pub fn directory(&self) -> Option<PathBuf> {
        directory().filter(|_| !self.no_cache)
    }
}

/// Where this system keeps what can be made again.
pub fn directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_system = || {
        if cfg!(windows) {
            set("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            set("HOME").map(|home| home.join("Library/Caches"))
        } else {
            set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
        }
    };
    set("LORAINE_CACHE").or_else(|| of_system().map(|dir| dir.join("loraine")))
}
