//! `loraine completions`.

use clap::{Args, Command};
use clap_complete::Shell;

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "Examples:
  loraine completions bash > ~/.local/share/bash-completion/completions/loraine
  loraine completions zsh > ~/.zfunc/_loraine
  loraine completions fish > ~/.config/fish/completions/loraine.fish")]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script; `program` is the command line that it completes.
pub fn run(args: CompletionsArgs, mut program: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "loraine", &mut script);
    out!("{}", String::from_utf8_lossy(&script).trim_end());
    Ok(())
}
