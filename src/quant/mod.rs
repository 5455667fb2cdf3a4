//! 4-bit quantization as bitsandbytes does it, bit for bit (Dettmers et al. 2023, QLoRA; checked against bitsandbytes 0.50 on the CPU).
//!
//! Blocks of 64 elements of the flattened matrix share one absmax; an element divided by it becomes the index of the nearest
//! of 16 code values. Under double quantization the absmax values, less their mean, become 8-bit codes in blocks of 256.
//! This is the host side: the twin of the GPU kernels, and the tables that they take.
//!
//! ```
//! use loraine::quant::format::Code4;
//! use loraine::quant::{dequantize, quantize};
//!
//! let weights: Vec<f32> = (0..128).map(|i| (0.1 * i as f32).sin()).collect();
//! let quantized = quantize(&weights, Code4::Nf4, true);
//! assert_eq!(quantized.packed.len(), 64);
//!
//! // Half of the widest gap between two values of NF4, times an absmax of about 1.
//! let restored = dequantize(&quantized, Code4::Nf4, weights.len());
//! assert!(weights.iter().zip(&restored).all(|(a, b)| (a - b).abs() < 0.16));
//! ```

pub mod format;
mod nested;

pub use nested::{Scales, dynamic_map, first_steps, mean, unsigned_dynamic_map};

#[cfg(any(test, not(target_arch = "wasm32")))]
use crate::quant::format::BlockCode;
use crate::quant::format::Code4;

/// The smallest absmax that is divided by.
pub const MIN_ABSMAX: f32 = 1e-38;

/// How an element in [-1, 1] becomes the index of the nearest value of a code.
#[derive(Clone, Copy, Debug)]
pub struct CodeTable {
    /// The value of each index.
    pub values: [f32; 16],
    /// The midpoints between neighboring values, ascending. An element lies in the interval of as many bounds as it exceeds strictly.
    pub bounds: [f32; 15],
    /// The index of each interval.
    pub order: [u32; 16],
}

/// The table of `code`.
pub fn code_table(code: Code4) -> CodeTable {
    let values = code.spec().values;
    let mut order: [u32; 16] = std::array::from_fn(|i| i as u32);
    // The sort is stable: of two equal values the lower index takes the lower interval, as in bitsandbytes.
    order.sort_by(|a, b| values[*a as usize].total_cmp(&values[*b as usize]));
    let bounds = std::array::from_fn(|i| (values[order[i] as usize] + values[order[i + 1] as usize]) / 2.0);
    CodeTable { values, bounds, order }
}

/// A quantized matrix in bitsandbytes' layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Two indices a byte, the first element in the high nibble.
    pub packed: Vec<u8>,
    /// One absmax for each block of the code, in the order of the flattened matrix.
    pub scales: Scales,
}

/// Quantizes `values`, a flattened matrix. `double` quantizes the scales too.
pub fn quantize(values: &[f32], code: Code4, double: bool) -> Quantized {
    let table = code_table(code);
    let mut indices = Vec::with_capacity(values.len() + 1);
    let mut absmax = Vec::new();
    let block_elements = code.block() as usize;
    for block in values.chunks(block_elements) {
        let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let whole = block.len() == block_elements;
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
    (0..count).map(|i| values[usize::from(index(i))] * absmax[i / code.block() as usize]).collect()
}

/// The values of the first `count` elements in the layout of a [`BlockCode`]: codes from the lowest bits on, and the scale of each block
/// with its minimum.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) fn dequantize_blocks(quantized: &Quantized, code: BlockCode, count: usize) -> Vec<f32> {
    let (bits, of_blocks) = (code.bits() as usize, quantized.scales.absmax());
    let of_block = |i: usize| &of_blocks[i / code.block() as usize * code.of_block() as usize..];
    let value = |i: usize| {
        let up = quantized.packed[i * bits / 8] << (8 - bits - i * bits % 8);
        match of_block(i) {
            [scale, minimum, ..] if code.has_minimum() => scale * f32::from(up >> (8 - bits)) - minimum,
            of_block => of_block[0] * f32::from(up as i8 >> (8 - bits)),
        }
    };
    (0..count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_the_code_survive_and_others_go_to_the_nearest() {
        for code in Code4::ALL {
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
    fn intervals_ascend_and_equal_values_keep_their_order() {
        assert_eq!(code_table(Code4::Nf4).order, std::array::from_fn(|i| i as u32));
        assert_eq!(code_table(Code4::Fp4).order, [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]);
    }

    #[test]
    fn zero_blocks_and_odd_lengths_have_bitsandbytes_bytes() {
        let zero = quantize(&[0.0; 65], Code4::Nf4, false);
        assert_eq!(zero.packed, vec![0x77; 33]);
        assert_eq!(zero.scales, Scales::Plain(vec![0.0, MIN_ABSMAX]));
        assert_eq!(quantize(&[0.0; 64], Code4::Fp4, false).packed, vec![0; 32]);
    }
}
