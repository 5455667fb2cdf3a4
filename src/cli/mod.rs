//! One file per subcommand: parse, call the library, show.

/// A line on standard output. A reader that has gone away (`| head`) does not end a run.
macro_rules! out {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

mod bench;
mod chat;
mod completions;
mod data_args;
mod demo;
mod estimate;
mod eval;
mod generate;
mod info;
mod inspect;
mod memory_bar;
mod merge;
mod quantize;
mod train;

use clap::{Args, Parser, Subcommand};
use loraine::gpu::{Gpu, GpuOptions, Profile};

/// LoRA and QLoRA fine-tuning of language models on any vendor's GPU.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Train(Box<train::TrainArgs>),
    Estimate(estimate::EstimateArgs),
    Eval(eval::EvalArgs),
    Generate(generate::GenerateArgs),
    Chat(chat::ChatArgs),
    Merge(merge::MergeArgs),
    Quantize(quantize::QuantizeArgs),
    Info(info::InfoArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Train(args) => train::run(*args),
        Command::Estimate(args) => estimate::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Info(args) => info::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args),
    }
}

/// Which GPU to run on.
#[derive(Args, Clone)]
pub struct GpuArgs {
    /// GPU to run on: part of its name, or its index in `loraine info` [default: the most capable]
    #[arg(long, value_name = "NAME|INDEX", env = "LORAINE_GPU", help_heading = "Device")]
    pub gpu: Option<String>,
}

impl GpuArgs {
    pub fn open(&self) -> anyhow::Result<Gpu> {
        let options = GpuOptions { adapter: self.gpu.clone(), ..Default::default() };
        Ok(pollster::block_on(Gpu::open(&options))?)
    }
}

/// Bytes as people read them: decimal units, three digits.
pub fn bytes(count: u64) -> String {
    let (unit, name) = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")]
        .into_iter()
        .find(|(unit, _)| count >= *unit)
        .unwrap_or((1, "B"));
    let value = count as f64 / unit as f64;
    let digits = if unit == 1 || value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {name}")
}

/// GPU time by operation, the longest first.
pub fn profile_table(profile: &Profile) -> String {
    let mut ops: Vec<_> = profile.ops.iter().collect();
    ops.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let total: f64 = ops.iter().map(|(_, (seconds, _))| seconds).sum();
    let mut table = format!("{:<28} {:>8} {:>12} {:>7}\n", "operation", "calls", "ms", "share");
    for (op, (seconds, calls)) in ops {
        table += &format!("{op:<28} {calls:>8} {:>12.2} {:>6.1}%\n", seconds * 1e3, 100.0 * seconds / total.max(1e-12));
    }
    table
}
