//! `loraine generate`.

use clap::Args;

use super::GpuArgs;

/// Continue a prompt, with or without adapters
#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: GenerateArgs) -> anyhow::Result<()> {
    args.gpu.open()?;
    Ok(())
}
