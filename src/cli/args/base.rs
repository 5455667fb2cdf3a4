//! Flags for the storage of the base in commands that do not train.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use loraine::network::base::BaseStorage;
use loraine::quant::format::Code4;

#[derive(Args)]
pub struct BaseArgs {
    /// Quantize the base's linear layers to 4 bits while loading
    #[arg(long, value_enum, default_value_t)]
    quant: OptionalCode,
    /// Keep the 4-bit block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// With --quant: quantize embedding and head too, like `train --quantize-embedding`
    #[arg(long)]
    quantize_embedding: bool,
}

/// A 4-bit code, or none for the types of the files.
#[derive(Clone, Copy, Default)]
struct OptionalCode(Option<Code4>);

impl OptionalCode {
    fn name(self) -> &'static str {
        self.0.map_or("none", Code4::name)
    }
}

impl ValueEnum for OptionalCode {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: OnceLock<Vec<OptionalCode>> = OnceLock::new();
        ALL.get_or_init(|| Code4::ALL.into_iter().map(Some).chain([None]).map(Self).collect())
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl BaseArgs {
    pub fn storage(&self) -> Result<BaseStorage> {
        let Some(code) = self.quant.0 else {
            let codes = Code4::names();
            ensure!(!self.quantize_embedding, "--quantize-embedding is for --quant {codes}");
            ensure!(!self.no_double_quant, "--no-double-quant is for --quant {codes}");
            return Ok(BaseStorage::AsStored);
        };
        Ok(BaseStorage::quantized(code.storage(!self.no_double_quant), self.quantize_embedding))
    }

    /// The value of `--quant`.
    pub fn quant_name(&self) -> &'static str {
        self.quant.name()
    }
}
