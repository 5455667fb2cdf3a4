//! 4-bit quantization as bitsandbytes does it, bit for bit (Dettmers et al. 2023, QLoRA; checked against bitsandbytes 0.50 on the CPU).
//!
//! Blocks of 64 elements of the flattened matrix share one absmax; an element divided by it becomes the index of the nearest
//! of 16 code values. Under double quantization the absmax values, less their mean, become 8-bit codes in blocks of 256.
//! This is the host side: the twin of the GPU kernels, and the tables that they take.

pub mod format;
mod nested;

pub use nested::{dynamic_map, first_steps, mean, unsigned_dynamic_map};

use crate::quant::format::{BLOCK, Code4, NESTED_BLOCK};

/// Values of the NF4 code by index.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

/// Values of the FP4 code by index: bit 3 is the sign; both zeros are +0.
pub const FP4: [f32; 16] = [
    0.0,
    0.0052083335,
    0.6666667,
    1.0,
    0.33333334,
    0.5,
    0.16666667,
    0.25,
    0.0,
    -0.0052083335,
    -0.6666667,
    -1.0,
    -0.33333334,
    -0.5,
    -0.16666667,
    -0.25,
];

/// The smallest absmax that is divided by.
pub const MIN_ABSMAX: f32 = 1e-38;

/// What a code's kernels need: the 15 midpoints between neighboring values, and which index each interval means.
#[derive(Clone, Copy, Debug)]
pub struct CodeTable {
    pub values: [f32; 16],
    /// An element takes the interval of as many bounds as it exceeds strictly.
    pub bounds: [f32; 15],
    pub order: [u32; 16],
}

pub fn code_table(code: Code4) -> CodeTable {
    let (values, order) = match code {
        Code4::Nf4 => (NF4, std::array::from_fn(|i| i as u32)),
        // Ascending by value; of the two zeros, 0 lies below 8.
        Code4::Fp4 => (FP4, [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]),
    };
    let bounds = std::array::from_fn(|i| (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0);
    CodeTable { values, bounds, order }
}

/// A quantized matrix in bitsandbytes' layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Two indices a byte, the first element in the high nibble.
    pub packed: Vec<u8>,
    pub scales: Scales,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    Plain(Vec<f32>),
    Nested { codes: Vec<u8>, absmax: Vec<f32>, offset: f32 },
}

impl Scales {
    /// The absmax of each block.
    pub fn absmax(&self) -> Vec<f32> {
        match self {
            Self::Plain(absmax) => absmax.clone(),
            Self::Nested { codes, absmax, offset } => {
                let map = dynamic_map();
                let scale = |i: usize| absmax[i / NESTED_BLOCK as usize];
                codes.iter().enumerate().map(|(i, code)| map[usize::from(*code)] * scale(i) + offset).collect()
            }
        }
    }
}

/// Quantizes `values`, a flattened matrix.
pub fn quantize(values: &[f32], code: Code4, double: bool) -> Quantized {
    let table = code_table(code);
    let mut indices = Vec::with_capacity(values.len() + 1);
    let mut absmax = Vec::new();
    for block in values.chunks(BLOCK as usize) {
        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let whole = block.len() as u64 == BLOCK;
        absmax.push(if whole { largest } else { largest.max(MIN_ABSMAX) });
        let divisor = largest.max(MIN_ABSMAX);
        let inverse = 1.0 / divisor;
        for value in block {
            let scaled = (if whole { value * inverse } else { value / divisor }).clamp(-1.0, 1.0);
            let interval = table.bounds.iter().filter(|bound| **bound < scaled).count();
            indices.push(table.order[interval] as u8);
        }
    }
    if indices.len() % 2 == 1 {
        let interval = table.bounds.iter().filter(|bound| **bound < 0.0).count();
        indices.push(table.order[interval] as u8);
    }
    let packed = indices.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let scales = if double { nested::quantize(&absmax) } else { Scales::Plain(absmax) };
    Quantized { packed, scales }
}

/// The values of the first `count` elements of a quantized matrix.
pub fn dequantize(quantized: &Quantized, code: Code4, count: usize) -> Vec<f32> {
    let values = code_table(code).values;
    let absmax = quantized.scales.absmax();
    let index = |i: usize| quantized.packed[i / 2] >> (4 * (1 - i % 2)) & 15;
    (0..count).map(|i| values[usize::from(index(i))] * absmax[i / BLOCK as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_the_code_survive_and_others_go_to_the_nearest() {
        for code in [Code4::Nf4, Code4::Fp4] {
            let table = code_table(code);
            let exact: Vec<f32> = (0..64).map(|i| 3.0 * table.values[i % 16]).collect();
            assert_eq!(dequantize(&quantize(&exact, code, false), code, 64), exact);
            let values: Vec<f32> = (0..130).map(|i| (i as f32 * 0.37).sin() * (1.0 + i as f32 / 50.0)).collect();
            let back = dequantize(&quantize(&values, code, false), code, 130);
            for (block, back) in values.chunks(64).zip(back.chunks(64)) {
                let absmax = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                for (value, back) in block.iter().zip(back) {
                    let nearest = table.values.iter().map(|c| (c * absmax - value).abs()).fold(f32::MAX, f32::min);
                    assert!((back - value).abs() <= nearest + 1e-6 * absmax, "{value} became {back}");
                }
            }
        }
    }

    #[test]
    fn zero_blocks_and_odd_lengths_have_bitsandbytes_bytes() {
        let zero = quantize(&[0.0; 65], Code4::Nf4, false);
        assert_eq!(zero.packed, vec![0x77; 33]);
        assert_eq!(zero.scales, Scales::Plain(vec![0.0, MIN_ABSMAX]));
        assert_eq!(quantize(&[0.0; 64], Code4::Fp4, false).packed, vec![0; 32]);
    }
}
