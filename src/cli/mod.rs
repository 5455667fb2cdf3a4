//! One file per subcommand: parse, call the library, show.

/// A line on standard output. A reader that has gone away (`| head`) does not end a run.
macro_rules! out {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

mod args;
mod bench;
mod cache;
mod chat;
mod completions;
mod demo;
mod estimate;
mod eval;
mod generate;
mod info;
mod inspect;
mod memory_bar;
mod merge;
mod quantize;
mod run_view;
mod show;
mod train;
mod watchdog;

use clap::{CommandFactory, Parser, Subcommand};

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
        Command::Completions(args) => completions::run(args, Cli::command()),
    }
}
