//! Flags of the cache, which holds 4-bit copies of large models and kernel choices.

use std::path::PathBuf;

use clap::Args;
use loraine::model::source::{CacheSettings, Source};

use crate::cli::show::parse_bytes;

/// Smaller models are quantized quickly and not cached.
const MIN_BYTES: u64 = 1 << 30;

#[derive(Args)]
pub struct CacheArgs {
    /// Do not use the cache: quantize the model and measure the kernels again, and keep neither. The cache is ~/.cache/loraine, or
    /// $LORAINE_CACHE; it holds 4-bit copies of models over 1 GiB and tuning results
    #[arg(long, help_heading = "Device")]
    no_cache: bool,
    /// Limit for all 4-bit copies, such as 20GB; beyond it the least recently used copies are removed
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "50GB", env = "LORAINE_CACHE_SIZE")]
    #[arg(help_heading = "Device", hide_env_values = true)]
    cache_size: u64,
}

impl CacheArgs {
    /// Lets loading use the cache, unless `--no-cache` is given.
    pub fn apply(&self, source: &mut Source) {
        source.cache =
            self.directory().map(|dir| CacheSettings { dir, min_bytes: MIN_BYTES, max_bytes: self.cache_size });
    }

    /// Returns the cache directory, or `None` with `--no-cache`.
    pub fn directory(&self) -> Option<PathBuf> {
        directory().filter(|_| !self.no_cache)
    }
}

/// Returns the cache directory of this system.
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
