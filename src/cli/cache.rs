//! `loraine cache`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use loraine::network::quantized_cache::{self, CachedCopy};
use loraine::tune;
use serde_json::json;

use super::args::cache as cache_args;
use super::show::bytes;

/// Show or remove the cache: 4-bit copies of large models, and tuning results of kernels
#[derive(Args)]
#[command(after_help = "Examples:
  loraine cache
  loraine cache --clear
  LORAINE_CACHE=/scratch/loraine loraine cache --json")]
pub struct CacheCommandArgs {
    /// Remove everything in the cache; later runs make it again
    #[arg(long)]
    clear: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Contents of the cache directory.
struct Contents {
    copies: Vec<CachedCopy>,
    /// Incomplete copies of killed processes, with their bytes.
    abandoned: Vec<(PathBuf, u64)>,
    measurements: Vec<PathBuf>,
}

impl Contents {
    fn of(dir: &Path) -> Self {
        Self {
            copies: quantized_cache::copies(dir),
            abandoned: quantized_cache::abandoned(dir),
            measurements: tune::measurements(dir),
        }
    }

    /// Bytes of all copies, complete or not; measurements take only a few kB.
    fn bytes(&self) -> u64 {
        let of_copies = self.copies.iter().map(|copy| copy.bytes);
        of_copies.chain(self.abandoned.iter().map(|(_, bytes)| *bytes)).sum()
    }

    fn clear(&self) -> Result<()> {
        let copies = self.copies.iter().map(|copy| &copy.path);
        let parts = self.abandoned.iter().map(|(path, _)| path);
        for path in copies.chain(parts).chain(&self.measurements) {
            loraine::files::remove_if_there(path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
        Ok(())
    }
}

/// Returns (directory, bytes of copies, number of copies) for `loraine info`.
pub fn summary() -> Option<(PathBuf, u64, usize)> {
    let dir = cache_args::directory()?;
    let contents = Contents::of(&dir);
    Some((dir, contents.bytes(), contents.copies.len()))
}

pub fn run(args: CacheCommandArgs) -> Result<()> {
    let dir = cache_args::directory().context("this system names no place for a cache; set LORAINE_CACHE to one")?;
    let contents = Contents::of(&dir);
    if args.clear {
        contents.clear()?;
    }
    if args.json {
        out!("{}", serde_json::to_string_pretty(&as_json(&dir, &contents, args.clear))?);
        return Ok(());
    }
    let copies = counted(contents.copies.len(), "4-bit copy", "4-bit copies");
    let measurements = counted(contents.measurements.len(), "file of tuning results", "files of tuning results");
    let verb = if args.clear { "removed " } else { "" };
    out!("{}: {verb}{copies} ({}) and {measurements}", dir.display(), bytes(contents.bytes()));
    for copy in contents.copies.iter().filter(|_| !args.clear) {
        out!("  {:>8}  used {:<14} {}", bytes(copy.bytes), ago(copy.unused_for), what(copy));
    }
    for (_, size) in contents.abandoned.iter().filter(|_| !args.clear) {
        out!("  {:>8}  part of a copy whose run was killed; the next run removes it", bytes(*size));
    }
    Ok(())
}

fn as_json(dir: &Path, contents: &Contents, cleared: bool) -> serde_json::Value {
    let copy = |copy: &CachedCopy| {
        json!({
            "file": copy.path,
            "bytes": copy.bytes,
            "unused_for_s": copy.unused_for.as_secs(),
            "model": copy.source.as_ref().map(|source| &source.model),
            "quant": copy.source.as_ref().map(|source| source.format.code.name()),
            "double_quant": copy.source.as_ref().map(|source| source.format.double),
            "quantize_embedding": copy.source.as_ref().map(|source| source.embedding),
        })
    };
    json!({
        "dir": dir,
        "bytes": contents.bytes(),
        "copies": contents.copies.iter().map(copy).collect::<Vec<_>>(),
        "measurements": contents.measurements,
        "cleared": cleared,
    })
}

fn what(copy: &CachedCopy) -> String {
    let Some(source) = &copy.source else { return "of an unknown model".to_owned() };
    let double = if source.format.double { "" } else { " --no-double-quant" };
    let embedding = if source.embedding { " --quantize-embedding" } else { "" };
    format!("{}  --quant {}{double}{embedding}", source.model.display(), source.format.code)
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn ago(time: Duration) -> String {
    match time.as_secs() {
        0..60 => "just now".to_owned(),
        seconds @ 60..3600 => format!("{} ago", counted(seconds as usize / 60, "minute", "minutes")),
        seconds @ 3600..86_400 => format!("{} ago", counted(seconds as usize / 3600, "hour", "hours")),
        seconds => format!("{} ago", counted(seconds as usize / 86_400, "day", "days")),
    }
}
