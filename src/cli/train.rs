//! `loraine train`.

use clap::Args;

use super::GpuArgs;

/// Train a LoRA adapter on a text
#[derive(Args)]
pub struct TrainArgs {
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: TrainArgs) -> anyhow::Result<()> {
    args.gpu.open()?;
    Ok(())
}
