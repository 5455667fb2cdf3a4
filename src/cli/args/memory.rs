//! Flags that trade time or precision for device memory.

use clap::Args;
use loraine::train::settings::{ActivationsChoice, Optim, RecomputeChoice, RunSettings};

use crate::cli::show::parse_bytes;

#[derive(Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Optimizer; adamw8bit keeps its moments in 8 bits like bitsandbytes, lion keeps one [default: adamw]
    #[arg(long, value_enum)]
    optim: Option<Optim>,
    /// Recompute activations in the backward pass: auto for layers that do not fit, none, or all (keeps only layer inputs)
    #[arg(long, value_enum)]
    recompute: Option<RecomputeChoice>,
    /// Type in which activations are kept for the backward pass: auto uses f32 unless only bf16 fits; bf16 takes half the memory [default: auto]
    #[arg(long, value_enum)]
    activations: Option<ActivationsChoice>,
    /// With --method qlora: quantize embedding and head too
    #[arg(long)]
    quantize_embedding: bool,
    /// Limit for the device memory of the run, such as 12GB; a number alone counts GB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub gpu_memory: Option<u64>,
}

impl MemoryArgs {
    /// Applies the given flags to `settings`.
    pub fn apply(&self, settings: &mut RunSettings) {
        settings.optim = self.optim.unwrap_or(settings.optim);
        settings.recompute = self.recompute.unwrap_or(settings.recompute);
        settings.activations = self.activations.unwrap_or(settings.activations);
        settings.quantize_embedding |= self.quantize_embedding;
        settings.gpu_memory = self.gpu_memory.or(settings.gpu_memory);
    }
}
