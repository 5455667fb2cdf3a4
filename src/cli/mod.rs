//! One file per subcommand: parse, call the library, show.

/// A line on standard output. A reader that has gone away (`| head`) does not end a run.
macro_rules! out {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

mod base_args;
mod bench;
mod cache;
mod cache_args;
mod chat;
mod completions;
mod data_args;
mod demo;
mod estimate;
mod eval;
mod generate;
mod info;
mod inspect;
mod memory_args;
mod memory_bar;
mod merge;
mod quantize;
mod run_view;
mod train;
mod tune_args;
mod watchdog;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use loraine::gpu::{Gpu, GpuOptions, MatrixUnits, Profile, Tune, TuneOptions};
use loraine::hub::HubModel;
use loraine::hub::fetch::{Extent, HubSettings, fetch};

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
    Cache(cache::CacheCommandArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

pub fn run(cli: Cli) -> anyhow::Result<()> {
    watchdog::watch_templates();
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
        Command::Cache(args) => cache::run(&args),
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
    /// on multiplies linear layers by the GPU's matrix units where it has them, with factors in f16 (scaled, sums in f32); off keeps
    /// every product in f32
    #[arg(long, value_enum, default_value = "off", env = "LORAINE_MATRIX_UNITS", help_heading = "Device")]
    pub matrix_units: MatrixUnitsArg,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum MatrixUnitsArg {
    On,
    Off,
}

impl From<MatrixUnitsArg> for MatrixUnits {
    fn from(arg: MatrixUnitsArg) -> Self {
        match arg {
            MatrixUnitsArg::On => Self::On,
            MatrixUnitsArg::Off => Self::Off,
        }
    }
}

impl GpuArgs {
    /// With the kernels of earlier runs.
    pub fn open(&self) -> anyhow::Result<Gpu> {
        self.open_tuned(TuneOptions { tune: Tune::Auto, cache: cache_args::directory() })
    }

    pub fn open_tuned(&self, tuning: TuneOptions) -> anyhow::Result<Gpu> {
        let matrix_units = self.matrix_units.into();
        let options = GpuOptions { adapter: self.gpu.clone(), matrix_units, tuning, ..Default::default() };
        Ok(pollster::block_on(Gpu::open(&options))?)
    }
}

/// The directory of `--model`: what it says, or where a model of the hub lies in the cache, fetched if need be.
pub fn model_directory(model: &Path, extent: Extent) -> anyhow::Result<PathBuf> {
    let hub_model = model.to_str().and_then(HubModel::parse);
    // What begins with a directory of this place is a path, though nothing may lie there.
    let is_path = model.exists() || model.parent().is_some_and(|owner| owner.is_dir() && owner != Path::new(""));
    let Some(name) = hub_model.filter(|_| !is_path) else { return Ok(model.to_owned()) };
    let bar = ProgressBar::new(0).with_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})")?
            .progress_chars("=> "),
    );
    let dir = fetch(&name, &HubSettings::from_env(), extent, |file, done, total| {
        bar.set_message(file.to_owned());
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(dir?)
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

/// Whether standard output is to be coloured: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
pub fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// A path as a word of a command to type, in quotes where a shell would take it apart.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./\\:@+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
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
