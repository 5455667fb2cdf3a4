//! `loraine eval`.

use clap::Args;

use super::GpuArgs;

/// Loss and perplexity of a model, with or without an adapter, on a data set
#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    gpu: GpuArgs,
}

pub fn run(args: EvalArgs) -> anyhow::Result<()> {
    args.gpu.open()?;
    Ok(())
}
