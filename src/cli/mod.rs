//! The terminal program: one file per subcommand parses arguments, calls the library and shows the result.

/// Prints a line on standard output, with control characters shown instead of obeyed. A closed pipe (`| head`) does not end a run.
macro_rules! out {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), "{}", crate::cli::show::harmless(&format!($($argument)*)));
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
mod interrupt;
mod memory_bar;
mod merge;
mod next_command;
mod quantize;
mod run_view;
mod show;
mod synonyms;
mod terminal;
mod train;
mod watchdog;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

pub use interrupt::Ended;
pub use show::printable;

/// LoRA and QLoRA fine-tuning of language models on any vendor's GPU.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Declares the enum of subcommands with their arguments, and the function that runs the given one.
macro_rules! subcommands {
    ($($name:ident($args:ty) => $run:path;)*) => {
        #[derive(Subcommand)]
        enum Command {
            $($name(Box<$args>),)*
        }

        impl Command {
            fn run(self) -> anyhow::Result<()> {
                match self {
                    $(Self::$name(args) => $run(*args),)*
                }
            }
        }
    };
}

// In the order in which `loraine --help` lists them.
subcommands! {
    Demo(demo::DemoArgs) => demo::run;
    Train(train::TrainArgs) => train::run;
    Estimate(estimate::EstimateArgs) => estimate::run;
    Eval(eval::EvalArgs) => eval::run;
    Generate(generate::GenerateArgs) => generate::run;
    Chat(chat::ChatArgs) => chat::run;
    Merge(merge::MergeArgs) => merge::run;
    Quantize(quantize::QuantizeArgs) => quantize::run;
    Info(info::InfoArgs) => info::run;
    Inspect(inspect::InspectArgs) => inspect::run;
    Cache(cache::CacheCommandArgs) => cache::run;
    Bench(bench::BenchArgs) => bench::run;
    Completions(completions::CompletionsArgs) => print_completions;
}

fn print_completions(args: completions::CompletionsArgs) -> anyhow::Result<()> {
    completions::run(args, Cli::command())
}

/// Parses the command line; names of other programs' flags are replaced first. Ends the program where it cannot be understood.
pub fn parse() -> Cli {
    let mut command = Cli::command();
    match synonyms::flags(std::env::args_os(), &command) {
        Ok(args) => Cli::parse_from(args),
        Err(problem) => command.error(ErrorKind::UnknownArgument, problem).exit(),
    }
}

pub fn run(cli: Cli) -> anyhow::Result<()> {
    watchdog::watch_templates();
    cli.command.run()
}
