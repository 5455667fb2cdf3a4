//! `loraine bench`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use loraine::bench::{self, Report, Shape};

use super::{GpuArgs, bytes};

/// Measure this device: its ceilings, the operations, whole training steps
#[derive(Args)]
#[command(
    after_help = "Shares are of what the adapter itself reached in the same run, so that they can be compared across machines.
A model's operations per second leave out recomputation and the adapter.

Examples:
  loraine bench --quick
  loraine bench --json > before.json
  loraine bench --compare before.json"
)]
pub struct BenchArgs {
    /// Leave out the larger shapes
    #[arg(long)]
    quick: bool,
    /// Models for whole training steps, of random weights [default: stories260k,stories15m]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    shape: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print ratios against an earlier --json result
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    gpu: GpuArgs,
}

fn shapes(names: &[String], quick: bool) -> anyhow::Result<Vec<Shape>> {
    let find = |name: &str| Shape::ALL.into_iter().find(|shape| shape.name == name);
    if names.is_empty() {
        let names: &[&str] = if quick { &["stories260k"] } else { &["stories260k", "stories15m"] };
        return Ok(names.iter().filter_map(|name| find(name)).collect());
    }
    let known: Vec<&str> = Shape::ALL.iter().map(|shape| shape.name).collect();
    let missing = |name: &String| format!("--shape {name} is not known; there are {}", known.join(", "));
    names.iter().map(|name| find(name).with_context(|| missing(name))).collect()
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let shapes = shapes(&args.shape, args.quick)?;
    let earlier: Option<Report> = match &args.compare {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            Some(serde_json::from_str(&text).with_context(|| format!("{} is no bench result", path.display()))?)
        }
    };
    let report = pollster::block_on(bench::run(args.gpu.open()?, &shapes, args.quick, |what| {
        if !args.json {
            eprintln!("measuring {what}");
        }
    }))?;
    if args.json {
        out!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    print(&report);
    if let Some(earlier) = earlier {
        compare(&report, &earlier);
    }
    Ok(())
}

fn print(report: &Report) {
    let ceilings = &report.ceilings;
    out!("{} ({})", report.gpu, report.driver);
    out!(
        "ceilings: {:.1} GFLOP/s multiply-add in f32, {:.1} GB/s copied, {:.2} us a dispatch",
        ceilings.fma_gflops,
        ceilings.copy_gb_per_s,
        ceilings.dispatch_us
    );
    out!("\n{:<28} {:<36} {:>10} {:>14} {:>7}", "operation", "shape", "ms", "achieved", "share");
    for op in &report.operations {
        let achieved = format!("{:.1} {}", op.achieved, op.unit);
        out!("{:<28} {:<36} {:>10.2} {achieved:>14} {:>6.1}%", op.name, op.shape, op.ms, 100.0 * op.share_of_ceiling);
    }
    out!(
        "\n{:<16} {:>9} {:>10} {:>10} {:>12} {:>7} {:>9} {:>9}",
        "QLoRA step",
        "batch",
        "ms",
        "tokens/s",
        "GFLOP/s",
        "share",
        "host ms",
        "memory"
    );
    for step in &report.steps {
        out!(
            "{:<16} {:>9} {:>10.1} {:>10.0} {:>12.1} {:>6.1}% {:>9.2} {:>9}",
            step.model,
            step.batch,
            step.ms,
            step.tokens_per_s,
            step.gflops,
            100.0 * step.share_of_ceiling,
            step.host_ms,
            bytes(step.gpu_bytes)
        );
    }
}

/// Ratios of this run to an earlier one, over 1 where this one is faster.
fn compare(now: &Report, earlier: &Report) {
    out!("\nagainst the earlier result ({}), over 1 is faster now:", earlier.gpu);
    out!("{:<66} {:>6.2}", "multiply-add ceiling", now.ceilings.fma_gflops / earlier.ceilings.fma_gflops);
    for op in &now.operations {
        if let Some(old) = earlier.operations.iter().find(|old| (&old.name, &old.shape) == (&op.name, &op.shape)) {
            out!("{:<28} {:<37} {:>6.2}", op.name, op.shape, old.ms / op.ms);
        }
    }
    for step in &now.steps {
        if let Some(old) = earlier.steps.iter().find(|old| (&old.model, &old.batch) == (&step.model, &step.batch)) {
            out!("{:<28} {:<37} {:>6.2}", step.model, step.batch, old.ms / step.ms);
        }
    }
}
