//! The formats that weights are stored in: floats, and 4-bit codes with a scale for each block.

/// Elements per absmax in 4-bit storage (QLoRA, Dettmers et al. 2023).
pub const BLOCK: u64 = 64;
/// Absmax values per nested scale under double quantization.
pub const NESTED_BLOCK: u64 = 256;
/// `nested` holds the 256 code values, the offset, then the nested scales.
pub const NESTED_SCALES_AT: u64 = 257;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code4 {
    Nf4,
    Fp4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    Float(Float),
    Quantized { code: Code4, double: bool },
}

impl Storage {
    /// Bytes of the values and of the scales of `elements` weights.
    pub fn bytes(self, elements: u64) -> (u64, u64) {
        match self {
            Self::Float(float) => (elements * float.bytes(), 0),
            Self::Quantized { .. } => (elements.div_ceil(2), self.scale_bytes(elements).into_iter().flatten().sum()),
        }
    }

    /// Bytes of the block scales and of the nested scales of `elements` weights, where there are such.
    pub fn scale_bytes(self, elements: u64) -> [Option<u64>; 2] {
        let blocks = elements.div_ceil(BLOCK);
        match self {
            Self::Float(_) => [None, None],
            Self::Quantized { double: false, .. } => [Some(4 * blocks), None],
            Self::Quantized { double: true, .. } => {
                [Some(blocks), Some(4 * (NESTED_SCALES_AT + blocks.div_ceil(NESTED_BLOCK)))]
            }
        }
    }

    /// The storage's name in the autotune table's keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(Float::F32) => "f32",
            Self::Float(Float::F16) => "f16",
            Self::Float(Float::Bf16) => "bf16",
            Self::Quantized { code: Code4::Nf4, double: false } => "nf4",
            Self::Quantized { code: Code4::Nf4, double: true } => "nf4 nested",
            Self::Quantized { code: Code4::Fp4, double: false } => "fp4",
            Self::Quantized { code: Code4::Fp4, double: true } => "fp4 nested",
        }
    }

    /// Every storage, for the tests that walk all variants.
    pub const ALL: [Self; 7] = [
        Self::Float(Float::F32),
        Self::Float(Float::F16),
        Self::Float(Float::Bf16),
        Self::Quantized { code: Code4::Nf4, double: false },
        Self::Quantized { code: Code4::Nf4, double: true },
        Self::Quantized { code: Code4::Fp4, double: false },
        Self::Quantized { code: Code4::Fp4, double: true },
    ];
}
