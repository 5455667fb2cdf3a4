//! The flags that trade time or digits for device memory.

use clap::Args;
use loraine::train::settings::{ActivationsChoice, Optim, RecomputeChoice, RunSettings};

use crate::cli::show::parse_bytes;

#[derive(Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// adamw8bit holds the optimizer's moments in 8 bits, in blocks of 256, as bitsandbytes does [default: adamw]
    #[arg(long, value_enum)]
    optim: Option<Optim>,
    /// auto recomputes the layers whose activations do not fit, none keeps everything, all keeps layer inputs alone
    #[arg(long, value_enum)]
    recompute: Option<RecomputeChoice>,
    /// auto keeps activations in f32 unless only bf16 fits; bf16 halves what layer inputs and kept layers take [default: auto]
    #[arg(long, value_enum)]
    activations: Option<ActivationsChoice>,
    /// With --method qlora: embedding and head in 4 bits too
    #[arg(long)]
    quantize_embedding: bool,
    /// Device memory that the run may take, such as 12GB: what is kept follows it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub gpu_memory: Option<u64>,
}

impl MemoryArgs {
    /// The given flags over `settings`.
    pub fn apply(&self, settings: &mut RunSettings) {
        settings.optim = self.optim.unwrap_or(settings.optim);
        settings.recompute = self.recompute.unwrap_or(settings.recompute);
        settings.activations = self.activations.unwrap_or(settings.activations);
        settings.quantize_embedding |= self.quantize_embedding;
        settings.gpu_memory = self.gpu_memory.or(settings.gpu_memory);
    }
}
