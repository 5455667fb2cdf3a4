//! How a table of floats lies in memory, and the shader part that reads it.

/// Storage of unquantised values: 32 bits, or 16 bits with two values per word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatStorage {
    F32,
    F16,
    Bf16,
}

impl FloatStorage {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Declares `table` at binding 1 and `load_float(index)`.
    pub(super) fn part(self) -> &'static str {
        match self {
            Self::F32 => include_str!("../../shaders/lib/float_f32.wgsl"),
            Self::F16 => include_str!("../../shaders/lib/float_f16.wgsl"),
            Self::Bf16 => include_str!("../../shaders/lib/float_bf16.wgsl"),
        }
    }
}

/// Values as the device stores them, and what is left of them after rounding.
#[cfg(test)]
pub mod twin {
    use half::{bf16, f16};

    use super::FloatStorage;

    /// The words of a table; the last one is padded with zero.
    pub fn words(storage: FloatStorage, values: &[f64]) -> Vec<u32> {
        let halves = |bits: fn(f32) -> u16| {
            let bits: Vec<u16> = values.iter().map(|v| bits(*v as f32)).collect();
            bits.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16).collect()
        };
        match storage {
            FloatStorage::F32 => values.iter().map(|v| (*v as f32).to_bits()).collect(),
            FloatStorage::F16 => halves(|v| f16::from_f32(v).to_bits()),
            FloatStorage::Bf16 => halves(|v| bf16::from_f32(v).to_bits()),
        }
    }

    pub fn rounded(storage: FloatStorage, value: f64) -> f64 {
        match storage {
            FloatStorage::F32 => f64::from(value as f32),
            FloatStorage::F16 => f16::from_f32(value as f32).to_f64(),
            FloatStorage::Bf16 => bf16::from_f32(value as f32).to_f64(),
        }
    }
}
