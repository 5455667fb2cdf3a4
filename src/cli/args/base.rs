//! Flags for the storage of the base in commands that do not train.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use loraine::network::base::BaseStorage;
use loraine::quant::format::Code4;
use loraine::train::settings::RunSettings;

#[derive(Args)]
pub struct BaseArgs {
    /// Quantize the base's linear layers to 4 bits while loading, or keep the packed blocks of a GGUF file as they are
    #[arg(long, value_enum, default_value_t)]
    quant: Quant,
    /// Keep the 4-bit block scales in f32 instead of quantizing them too
    #[arg(long)]
    no_double_quant: bool,
    /// With --quant: quantize embedding and head too, like `train --quantize-embedding`
    #[arg(long)]
    quantize_embedding: bool,
}

/// The form of a 4-bit base: a code to quantize to, or the blocks of a GGUF file as they are.
#[derive(Clone, Copy)]
pub enum Quant4 {
    Code(Code4),
    Keep,
}

/// The form of a base in commands that do not train: in 4 bits, or in the types of the files.
#[derive(Clone, Copy, Default)]
struct Quant(Option<Quant4>);

impl Default for Quant4 {
    fn default() -> Self {
        Self::Code(Code4::default())
    }
}

impl Quant4 {
    fn all() -> impl Iterator<Item = Self> {
        Code4::ALL.into_iter().map(Self::Code).chain([Self::Keep])
    }

    fn name(self) -> &'static str {
        match self {
            Self::Code(code) => code.name(),
            Self::Keep => "keep",
        }
    }

    /// Writes the choice into the settings of a run.
    pub fn apply(self, settings: &mut RunSettings) {
        settings.keep_blocks = matches!(self, Self::Keep);
        if let Self::Code(code) = self {
            settings.quant = code;
        }
    }
}

impl Quant {
    fn name(self) -> &'static str {
        self.0.map_or("none", Quant4::name)
    }
}

impl ValueEnum for Quant4 {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: OnceLock<Vec<Quant4>> = OnceLock::new();
        ALL.get_or_init(|| Quant4::all().collect())
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl ValueEnum for Quant {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: OnceLock<Vec<Quant>> = OnceLock::new();
        ALL.get_or_init(|| Quant4::all().map(Some).chain([None]).map(Self).collect())
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl BaseArgs {
    pub fn storage(&self) -> Result<BaseStorage> {
        if let Some(Quant4::Code(code)) = self.quant.0 {
            return Ok(BaseStorage::quantized(code.storage(!self.no_double_quant), self.quantize_embedding));
        }
        let codes = Code4::names();
        ensure!(!self.quantize_embedding, "--quantize-embedding is for --quant {codes}");
        ensure!(!self.no_double_quant, "--no-double-quant is for --quant {codes}");
        Ok(if self.quant.0.is_some() { BaseStorage::KeptBlocks } else { BaseStorage::AsStored })
    }

    /// The value of `--quant`.
    pub fn quant_name(&self) -> &'static str {
        self.quant.name()
    }
}
