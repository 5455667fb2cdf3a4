//! The flags that trade time or digits for device memory.

use clap::{Args, ValueEnum};
use loraine::train::settings::{ActivationsChoice, Optim, RecomputeChoice, RunSettings};

use crate::cli::show::parse_bytes;

#[derive(Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// adamw8bit holds the optimizer's moments in 8 bits, in blocks of 256, as bitsandbytes does [default: adamw]
    #[arg(long, value_enum)]
    optim: Option<OptimArg>,
    /// auto recomputes the layers whose activations do not fit, none keeps everything, all keeps layer inputs alone
    #[arg(long, value_enum)]
    recompute: Option<RecomputeArg>,
    /// auto keeps activations in f32 unless only bf16 fits; bf16 halves what layer inputs and kept layers take [default: auto]
    #[arg(long, value_enum)]
    activations: Option<ActivationsArg>,
    /// With --method qlora: embedding and head in 4 bits too
    #[arg(long)]
    quantize_embedding: bool,
    /// Device memory that the run may take, such as 12GB: what is kept follows it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub gpu_memory: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimArg {
    Adamw,
    #[value(name = "adamw8bit", aliases = ["adamw_8bit", "adamw_bnb_8bit"])]
    Adamw8bit,
}

#[derive(Clone, Copy, ValueEnum)]
enum RecomputeArg {
    Auto,
    None,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum ActivationsArg {
    Auto,
    F32,
    Bf16,
}

impl MemoryArgs {
    /// The given flags over `settings`.
    pub fn apply(&self, settings: &mut RunSettings) {
        if let Some(optim) = self.optim {
            settings.optim = match optim {
                OptimArg::Adamw => Optim::Adamw,
                OptimArg::Adamw8bit => Optim::Adamw8bit,
            };
        }
        if let Some(recompute) = self.recompute {
            settings.recompute = match recompute {
                RecomputeArg::Auto => RecomputeChoice::Auto,
                RecomputeArg::None => RecomputeChoice::None,
                RecomputeArg::All => RecomputeChoice::All,
            };
        }
        if let Some(activations) = self.activations {
            settings.activations = match activations {
                ActivationsArg::Auto => ActivationsChoice::Auto,
                ActivationsArg::F32 => ActivationsChoice::F32,
                ActivationsArg::Bf16 => ActivationsChoice::Bf16,
            };
        }
        settings.quantize_embedding |= self.quantize_embedding;
        settings.gpu_memory = self.gpu_memory.or(settings.gpu_memory);
    }
}
