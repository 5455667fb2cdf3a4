//! How a command that trains nothing holds the base.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use loraine::network::base::BaseStorage;
use loraine::train::settings::Quant;

#[derive(Args)]
pub struct BaseArgs {
    /// Hold the base's linear layers in 4 bits, quantized as it is loaded
    #[arg(long, value_enum, default_value_t = QuantArg::None)]
    quant: QuantArg,
    /// Keep the 4-bit block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// With --quant: embedding and head in 4 bits too, as `train --quantize-embedding` has them
    #[arg(long)]
    quantize_embedding: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum QuantArg {
    Nf4,
    Fp4,
    None,
}

impl BaseArgs {
    pub fn storage(&self) -> Result<BaseStorage> {
        let quant = match self.quant {
            QuantArg::Nf4 => Quant::Nf4,
            QuantArg::Fp4 => Quant::Fp4,
            QuantArg::None => {
                ensure!(!self.quantize_embedding, "--quantize-embedding is for --quant nf4 or fp4");
                ensure!(!self.no_double_quant, "--no-double-quant is for --quant nf4 or fp4");
                return Ok(BaseStorage::AsStored);
            }
        };
        Ok(quant.base(!self.no_double_quant, self.quantize_embedding))
    }

    /// The value of `--quant`.
    pub fn quant_name(&self) -> &'static str {
        match self.quant {
            QuantArg::Nf4 => "nf4",
            QuantArg::Fp4 => "fp4",
            QuantArg::None => "none",
        }
    }
}
