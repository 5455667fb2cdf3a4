//! `loraine info`.

use clap::Args;

use super::GpuArgs;

/// List the GPUs of this machine, or describe a model
#[derive(Args)]
pub struct InfoArgs {
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: InfoArgs) -> anyhow::Result<()> {
    args.gpu.open()?;
    Ok(())
}
