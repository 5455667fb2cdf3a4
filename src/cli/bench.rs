//! `loraine bench`.

use clap::Args;

use super::GpuArgs;

/// Measure this device: its ceilings, the operations, whole steps
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    args.gpu.open()?;
    Ok(())
}
