//! `loraine bench`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use loraine::bench::{self, Figure, Peer, Report, Shape, StepResult};
use loraine::gpu::OperationShare;
use loraine::train::settings::RunSettings;

use super::args::gpu::GpuArgs;
use super::args::memory::MemoryArgs;
use super::args::tune::TuneArgs;
use super::show::{bytes, profile_table};

/// Smallest share of a step's time for an operation in its table.
const SHOWN_SHARE: f64 = 0.005;

/// Measure this device: ceilings, operations and whole training steps
#[derive(Args)]
#[command(
    after_help = "Shares are of what the adapter itself reached in the same run, so that they can be compared across machines.
A model's operations per second leave out recomputation and the adapter.

Examples:
  loraine bench --quick
  loraine bench --json > before.json
  loraine bench --compare before.json
  loraine bench --tune off --json > usual.json
  loraine bench --shape llama-2-7b --quantize-embedding"
)]
pub struct BenchArgs {
    /// Leave out the larger shapes
    #[arg(long)]
    quick: bool,
    /// Models (with random weights) and batches for whole training steps [default: stories260k:8x128,stories15m:4x256]
    #[arg(long, value_name = "NAME[:SEQUENCESxLENGTH]", value_delimiter = ',')]
    shape: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print the ratios to an earlier --json result
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Also print the project's figures, with the results of the programs in examples/peers from this file
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    tune: TuneArgs,
}

fn shapes(names: &[String], quick: bool) -> anyhow::Result<Vec<Shape>> {
    let default: &[&str] = if quick { &["stories260k:8x128"] } else { &["stories260k:8x128", "stories15m:4x256"] };
    let names: Vec<&str> = if names.is_empty() { default.to_vec() } else { names.iter().map(String::as_str).collect() };
    names.into_iter().map(|name| Shape::named(name).with_context(|| format!("--shape {name}"))).collect()
}

/// Prints one JSON object per line.
fn peers(path: &Path) -> anyhow::Result<Vec<Peer>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let peer = |(i, line)| {
        serde_json::from_str(line).with_context(|| format!("{} line {} is no peer's result", path.display(), i + 1))
    };
    lines.map(peer).collect()
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
    let peers = args.peers.as_deref().map(peers).transpose()?;
    let mut settings = RunSettings::default();
    args.memory.apply(&mut settings);
    let gpu = args.gpu.open_tuned(args.tune.options(None))?;
    let report = pollster::block_on(bench::run(gpu, &shapes, &settings, args.quick, |what| {
        if !args.json {
            eprintln!("measuring {what}");
        }
    }))?;
    if args.json {
        out!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    print(&report);
    if let Some(peers) = &peers {
        print_figures(&report, peers);
    }
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
    if let Some(gflops) = ceilings.matrix_gflops {
        out!("          {gflops:.1} GFLOP/s by cooperative matrices of f16 with sums in f32");
    }
    out!("\n{:<28} {:<36} {:>10} {:>14} {:>7}", "operation", "shape", "ms", "achieved", "share");
    for op in &report.operations {
        let achieved = format!("{:.1} {}", op.achieved, op.unit);
        let (share, kernel) = (100.0 * op.share_of_ceiling, &op.kernel);
        let kernel = if op.by_matrices { format!("of matrices {kernel}") } else { kernel.clone() };
        out!("{:<28} {:<36} {:>10.2} {achieved:>14} {share:>6.1}% {kernel}", op.name, op.shape, op.ms);
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
    for step in &report.steps {
        print_details(step);
    }
    out!("\none sequence, all that its length has a say in:");
    for length in &report.lengths {
        let (size, off) = (bytes(length.bytes), 100.0 * length.off_the_line);
        out!("{:<16} {:>5} tokens {size:>9}, {off:>+5.1}% off a straight line", length.model, length.tokens);
    }
}

fn print_figures(report: &Report, peers: &[Peer]) {
    out!("\n{:<76} {:>9} {:>8}", "figure", "measured", "aim");
    for Figure { name, measured, aim } in bench::figures(report, peers) {
        out!("{name:<76} {measured:>9} {aim:>8}");
    }
}

/// Prints the memory and the time of a step.
fn print_details(step: &StepResult) {
    let memory: Vec<String> = step.memory.iter().map(|(c, count)| format!("{} {}", c.name(), bytes(*count))).collect();
    out!("\n{} {}: {}", step.model, step.batch, memory.join(", "));
    for kernel in &step.kernels {
        out!("  {kernel}");
    }
    let shown: Vec<OperationShare> = step.operations.iter().filter(|op| op.share >= SHOWN_SHARE).cloned().collect();
    for line in profile_table(&shown).lines() {
        out!("  {line}");
    }
}

/// Prints the ratios of this run to an earlier one; above 1 means that this run is faster.
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
