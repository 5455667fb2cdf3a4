//! The terminal program: one file per subcommand parses arguments, calls the library and shows the result.

/// Prints a line on standard output, with control characters shown instead of obeyed. Neither a closed pipe (`| head`) nor a full disk
/// ends a run; the latter is an error at the end of the program.
macro_rules! out {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let line = format!($($argument)*);
        crate::cli::output::note(writeln!(std::io::stdout(), "{}", crate::cli::show::harmless(&line)));
    }};
}

mod args;
mod bench;
mod cache;
mod chat;
mod completions;
mod demo;
mod distill;
mod doctor;
mod error_event;
mod estimate;
mod eval;
mod export;
mod generate;
mod info;
mod inspect;
mod interrupt;
mod memory_bar;
mod merge;
mod next_command;
mod output;
mod quantize;
mod ranks;
mod run_view;
#[cfg(feature = "serve")]
mod serve;
mod show;
mod status;
mod synonyms;
mod terminal;
mod train;
mod watchdog;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use loraine::setting::{as_flag, written};

pub use interrupt::Ended;
pub use output::without_passwords;
pub use ranks::{leave, whose};
use show::printable;

/// LoRA and QLoRA fine-tuning of language models on any vendor's GPU.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Declares the enum of subcommands with their arguments, and the function that runs the given one.
macro_rules! subcommands {
    ($($(#[$attribute:meta])* $name:ident($args:ty) => $run:path;)*) => {
        #[derive(Subcommand)]
        enum Command {
            $($(#[$attribute])* $name(Box<$args>),)*
        }

        impl Command {
            fn run(self) -> anyhow::Result<()> {
                match self {
                    $($(#[$attribute])* Self::$name(args) => $run(*args),)*
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
    Distill(distill::DistillArgs) => distill::run;
    Generate(generate::GenerateArgs) => generate::run;
    Chat(chat::ChatArgs) => chat::run;
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs) => serve::run;
    Merge(merge::MergeArgs) => merge::run;
    Export(export::ExportArgs) => export::run;
    Quantize(quantize::QuantizeArgs) => quantize::run;
    Info(info::InfoArgs) => info::run;
    Inspect(inspect::InspectArgs) => inspect::run;
    Cache(cache::CacheCommandArgs) => cache::run;
    Bench(bench::BenchArgs) => bench::run;
    Doctor(doctor::DoctorArgs) => doctor::run;
    Completions(completions::CompletionsArgs) => print_completions;
}

fn print_completions(args: completions::CompletionsArgs) -> anyhow::Result<()> {
    completions::run(args, Cli::command())
}

/// Parses arguments; names of other programs' flags are replaced first.
fn matches(args: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    let mut command = Cli::command();
    match synonyms::flags(args, &command) {
        Ok(args) => command.try_get_matches_from(args),
        Err(problem) => Err(command.error(ErrorKind::UnknownArgument, problem)),
    }
}

/// Runs the command of the program's arguments. An error is returned for the terminal, after its event for programs.
///
/// Does not return if the arguments cannot be understood, or ask for help.
pub fn run() -> anyhow::Result<()> {
    let matches = matches(std::env::args_os().collect()).unwrap_or_else(|error| {
        let json = std::env::args_os().any(|argument| argument == "--json");
        if json && error.use_stderr() {
            out!("{}", error_event::of_usage(&error));
        }
        error.exit()
    });
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    watchdog::watch();
    cli.command.run().inspect_err(|error| {
        if wants_json(&matches) && !error.is::<Ended>() {
            out!("{}", error_event::of(error, &shown(error)));
        }
    })?;
    output::finish()
}

/// An error as the terminal shows it.
pub fn shown(error: &anyhow::Error) -> String {
    // The message may quote a file's text.
    printable(&without_passwords(&written(&format!("{error:#}"), as_flag))).into()
}

fn wants_json(matches: &ArgMatches) -> bool {
    let of_command = |(_, matches): (_, &ArgMatches)| matches.try_get_one("json").is_ok_and(|json| json == Some(&true));
    matches.subcommand().is_some_and(of_command)
}
