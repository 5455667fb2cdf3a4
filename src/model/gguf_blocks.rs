//! The types of GGUF tensors, and the values of their blocks to the bit (ggml's `ggml-common.h` and `ggml-quants.c`).
//!
//! A product of scale and code always fits the 24 bits of f32, so that only the last addition rounds: the order of the operations cannot
//! change a bit.

use half::{bf16, f16};

use crate::quant::format::{BlockCode, Code4, Storage};
use crate::quant::{Quantized, Scales};

/// The type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Type, ggml's number, name, values in a block, bytes of a block.
const TYPES: [(GgmlType, u32, &str, u64, u64); 16] = [
    (GgmlType::F32, 0, "F32", 1, 4),
    (GgmlType::F16, 1, "F16", 1, 2),
    (GgmlType::Bf16, 30, "BF16", 1, 2),
    (GgmlType::Q4_0, 2, "Q4_0", 32, 18),
    (GgmlType::Q4_1, 3, "Q4_1", 32, 20),
    (GgmlType::Q5_0, 6, "Q5_0", 32, 22),
    (GgmlType::Q5_1, 7, "Q5_1", 32, 24),
    (GgmlType::Q8_0, 8, "Q8_0", 32, 34),
    (GgmlType::Q2K, 10, "Q2_K", 256, 84),
    (GgmlType::Q3K, 11, "Q3_K", 256, 110),
    (GgmlType::Q4K, 12, "Q4_K", 256, 144),
    (GgmlType::Q5K, 13, "Q5_K", 256, 176),
    (GgmlType::Q6K, 14, "Q6_K", 256, 210),
    (GgmlType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (GgmlType::Iq4Xs, 23, "IQ4_XS", 256, 136),
    (GgmlType::Mxfp4, 39, "MXFP4", 32, 17),
];

/// Names of types that are not read, by ggml's number.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
    (4, "Q4_2, which ggml has removed"),
];

/// The 16 values of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The 16 values of MXFP4 (e2m1), doubled.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl GgmlType {
    /// The type with ggml's number.
    ///
    /// # Errors
    /// A type that is not read, as a part of a sentence.
    pub(crate) fn of(number: u32) -> Result<Self, String> {
        if let Some((kind, ..)) = TYPES.iter().find(|(_, own, ..)| *own == number) {
            return Ok(*kind);
        }
        let names: Vec<&str> = TYPES.iter().map(|(_, _, name, ..)| *name).collect();
        let name = OTHERS.iter().find(|(own, _)| *own == number).map_or("unknown", |(_, name)| *name);
        Err(format!("has the type {number} ({name}), which is not read; read are {}", names.join(", ")))
    }

    fn row(self) -> (GgmlType, u32, &'static str, u64, u64) {
        TYPES[self as usize]
    }

    /// The number by which files name it.
    pub(crate) fn number(self) -> u32 {
        self.row().1
    }

    /// ggml's name.
    pub(crate) fn name(self) -> &'static str {
        self.row().2
    }

    /// Values in a block.
    pub(crate) fn block(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// True if every value is a number of its own.
    pub(crate) fn is_float(self) -> bool {
        self.block() == 1
    }

    /// Decodes whole blocks into `values`, which has room for all of them.
    pub(crate) fn decode(self, bytes: &[u8], values: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.block_bytes() as usize);
        for (block, values) in blocks.zip(values.chunks_exact_mut(self.block() as usize)) {
            self.decode_block(block, values);
        }
    }

    /// Encodes values, whole blocks of them, as ggml does; None for a type that is only read.
    pub(crate) fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(values.len() / self.block() as usize * self.block_bytes() as usize);
        match self {
            Self::F32 => bytes.extend_from_slice(bytemuck::cast_slice(values)),
            Self::F16 => bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
            Self::Q8_0 => values.chunks_exact(32).for_each(|block| q8_0(block, &mut bytes)),
            Self::Q4_0 => values.chunks_exact(32).for_each(|block| q4_0(block, &mut bytes)),
            _ => return None,
        }
        Some(bytes)
    }

    fn decode_block(self, b: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => values[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => values[0] = half(b, 0),
            Self::Bf16 => values[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::Q4_0 => nibbles(&b[2..], values, |_, q| half(b, 0) * (q as f32 - 8.0)),
            Self::Iq4Nl => nibbles(&b[2..], values, |_, q| half(b, 0) * f32::from(IQ4[q as usize])),
            Self::Mxfp4 => {
                let d = e8m0_half(b[0]);
                nibbles(&b[1..], values, |_, q| d * f32::from(E2M1[q as usize]));
            }
            Self::Iq4Xs => iq4_xs(b, values),
            _ => {
                let of_blocks = self.integers(b, values);
                let Some(Storage::Blocks(code)) = self.storage() else { return };
                for (values, [scale, minimum]) in values.chunks_exact_mut(code.block() as usize).zip(of_blocks) {
                    values.iter_mut().for_each(|value| *value = scale * *value - minimum);
                }
            }
        }
    }

    /// Writes the codes of a block of integers into `codes`. Returns the scale and the minimum of each block of a [`BlockCode`] in it.
    fn integers(self, b: &[u8], codes: &mut [f32]) -> [[f32; 2]; 16] {
        let mut of_blocks = [[0.0; 2]; 16];
        match self {
            Self::Q4_1 => {
                nibbles(&b[4..], codes, |_, q| q as f32);
                of_blocks[0] = [half(b, 0), -half(b, 2)];
            }
            Self::Q5_1 => {
                let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
                nibbles(&b[8..], codes, |j, q| (q | (high >> j & 1) << 4) as f32);
                of_blocks[0] = [half(b, 0), -half(b, 2)];
            }
            Self::Q5_0 => {
                let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
                nibbles(&b[6..], codes, |j, q| (q | (high >> j & 1) << 4) as f32 - 16.0);
                of_blocks[0][0] = half(b, 0);
            }
            Self::Q2K => q2_k(b, codes, &mut of_blocks),
            Self::Q3K => q3_k(b, codes, &mut of_blocks),
            Self::Q4K | Self::Q5K => q45_k(b, codes, &mut of_blocks, self == Self::Q5K),
            Self::Q6K => q6_k(b, codes, &mut of_blocks),
            _ => {
                codes.iter_mut().zip(&b[2..]).for_each(|(code, q)| *code = f32::from(*q as i8));
                of_blocks[0][0] = half(b, 0);
            }
        }
        of_blocks
    }
}

/// `1 / d`, or 0 where d is 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(block: &[f32], bytes: &mut Vec<u8>) {
    let d = block.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 127.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
}

fn q4_0(block: &[f32], bytes: &mut Vec<u8>) {
    // The value that is the largest without its sign, with its sign.
    let most = block.iter().fold(0.0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
    let d = most / -8.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    let code = |v: f32| ((v * inverse + 8.5) as u8).min(15);
    bytes.extend((0..16).map(|j| code(block[j]) | code(block[j + 16]) << 4));
}

impl GgmlType {
    /// The storage in which the blocks lie on the device; None for floats.
    pub(crate) fn storage(self) -> Option<Storage> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => Code4::Q40.storage(false),
            Self::Iq4Nl | Self::Iq4Xs => Code4::Iq4.storage(false),
            Self::Mxfp4 => Code4::Mxfp4.storage(false),
            Self::Q4_1 | Self::Q4K => Storage::Blocks(BlockCode::Q4K),
            Self::Q2K => Storage::Blocks(BlockCode::Q2K),
            Self::Q3K => Storage::Blocks(BlockCode::Q3K),
            Self::Q5_1 | Self::Q5K => Storage::Blocks(BlockCode::Q5K),
            Self::Q6K => Storage::Blocks(BlockCode::Q6K),
            Self::Q5_0 | Self::Q8_0 => Storage::Blocks(BlockCode::Q80),
        })
    }

    /// Blocks in the layout of their [`Self::storage`]. The values stay the same to the bit.
    pub(crate) fn repack(self, bytes: &[u8]) -> Quantized {
        match self.storage() {
            Some(Storage::Blocks(code)) => self.repack_integers(code, bytes),
            _ => self.repack_code4(bytes),
        }
    }

    /// Codes, scales and minima of blocks of integers, eight codes of 4 bits a word or four of 8 bits, the first in the lowest bits.
    fn repack_integers(self, code: BlockCode, bytes: &[u8]) -> Quantized {
        let (mut packed, mut of_blocks) = (Vec::new(), Vec::new());
        let mut codes = vec![0.0; self.block() as usize];
        for b in bytes.chunks_exact(self.block_bytes() as usize) {
            let own = self.integers(b, &mut codes);
            let own = &own[..(self.block() / code.block()) as usize];
            of_blocks.extend(own.iter().flat_map(|of_block| &of_block[..code.of_block() as usize]));
            // Two's complement.
            let byte = |code: f32| code as i16 as u8;
            match code.bits() {
                4 => packed.extend(codes.chunks_exact(2).map(|pair| byte(pair[0]) & 15 | byte(pair[1]) << 4)),
                _ => packed.extend(codes.iter().map(|code| byte(*code))),
            }
        }
        Quantized { packed, scales: Scales::Plain(of_blocks) }
    }

    /// Blocks of a 4-bit code. The scales take up the powers of two by which the code's values are smaller.
    fn repack_code4(self, bytes: &[u8]) -> Quantized {
        let (mut packed, mut absmax) = (Vec::new(), Vec::new());
        for b in bytes.chunks_exact(self.block_bytes() as usize) {
            let (scales, codes) = match self {
                Self::Iq4Xs => ((0..8).map(|j| 128.0 * half(b, 0) * (iq4_xs_scale(b, j) - 32.0)).collect(), &b[8..]),
                Self::Iq4Nl => (vec![128.0 * half(b, 0)], &b[2..]),
                Self::Mxfp4 => (vec![16.0 * e8m0_half(b[0])], &b[1..]),
                _ => (vec![8.0 * half(b, 0)], &b[2..]),
            };
            absmax.extend(scales);
            for codes in codes.chunks_exact(16) {
                let pairs = |shift: u8| {
                    let code = move |byte: u8| byte >> shift & 15;
                    codes.chunks_exact(2).map(move |pair| code(pair[0]) << 4 | code(pair[1]))
                };
                packed.extend(pairs(0).chain(pairs(4)));
            }
        }
        Quantized { packed, scales: Scales::Plain(absmax) }
    }
}

/// The scale of 6 bits of block `j` of 32 values of IQ4_XS, which is taken less 32.
fn iq4_xs_scale(b: &[u8], j: usize) -> f32 {
    let high = u16::from_le_bytes([b[2], b[3]]);
    let low = b[4 + j / 2] >> (4 * (j % 2)) & 15;
    f32::from(u16::from(low) | (high >> (2 * j) & 3) << 4)
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// `2^(e - 128)`: half of the scale of MXFP4, whose table is doubled.
fn e8m0_half(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((u32::from(e) - 1) << 23),
    }
}

/// 32 codes of 4 bits: the low halves of the bytes are the first 16, the high halves the others.
fn nibbles(bytes: &[u8], values: &mut [f32], value: impl Fn(usize, u32) -> f32) {
    for (j, byte) in bytes[..16].iter().enumerate() {
        values[j] = value(j, u32::from(byte & 15));
        values[j + 16] = value(j + 16, u32::from(byte >> 4));
    }
}

fn q2_k(b: &[u8], codes: &mut [f32], of_blocks: &mut [[f32; 2]]) {
    let (d, least) = (half(b, 80), half(b, 82));
    for (scale, of_block) in b.iter().zip(of_blocks) {
        *of_block = [d * f32::from(scale & 15), least * f32::from(scale >> 4)];
    }
    for (e, code) in codes.iter_mut().enumerate() {
        let (h, t, l) = (e / 128, e / 32 % 4, e % 32);
        *code = f32::from(b[16 + 32 * h + l] >> (2 * t) & 3);
    }
}

fn q3_k(b: &[u8], codes: &mut [f32], of_blocks: &mut [[f32; 2]]) {
    let (d, scales) = (half(b, 108), &b[96..108]);
    for (i, of_block) in of_blocks.iter_mut().enumerate() {
        let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let scale = low | (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        of_block[0] = d * (f32::from(scale) - 32.0);
    }
    for (e, code) in codes.iter_mut().enumerate() {
        let (h, t, l) = (e / 128, e / 32 % 4, e % 32);
        let q = f32::from(b[32 + 32 * h + l] >> (2 * t) & 3);
        let high = b[l] >> (4 * h + t) & 1;
        *code = q - if high == 1 { 0.0 } else { 4.0 };
    }
}

/// Scale and minimum `j` of Q4_K and Q5_K, of 6 bits each.
fn scale_and_minimum(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (scales[j] & 63, scales[j + 4] & 63);
    }
    (scales[j + 4] & 15 | (scales[j - 4] >> 6) << 4, scales[j + 4] >> 4 | (scales[j] >> 6) << 4)
}

fn q45_k(b: &[u8], codes: &mut [f32], of_blocks: &mut [[f32; 2]], five: bool) {
    let (d, least, low) = (half(b, 0), half(b, 2), if five { 48 } else { 16 });
    for (j, (codes, of_block)) in codes.chunks_exact_mut(32).zip(of_blocks).enumerate() {
        let (scale, minimum) = scale_and_minimum(&b[4..16], j);
        *of_block = [d * f32::from(scale), least * f32::from(minimum)];
        for (l, code) in codes.iter_mut().enumerate() {
            let mut q = b[low + 32 * (j / 2) + l] >> (4 * (j % 2)) & 15;
            if five {
                q |= (b[16 + l] >> j & 1) << 4;
            }
            *code = f32::from(q);
        }
    }
}

fn q6_k(b: &[u8], codes: &mut [f32], of_blocks: &mut [[f32; 2]]) {
    let d = half(b, 208);
    for (scale, of_block) in b[192..208].iter().zip(of_blocks) {
        of_block[0] = d * f32::from(*scale as i8);
    }
    for (e, code) in codes.iter_mut().enumerate() {
        let (h, t, l) = (e / 128, e / 32 % 4, e % 32);
        let low = b[64 * h + 32 * (t & 1) + l] >> (4 * (t / 2)) & 15;
        let q = low | (b[128 + 32 * h + l] >> (2 * t) & 3) << 4;
        *code = f32::from(q) - 32.0;
    }
}

fn iq4_xs(b: &[u8], values: &mut [f32]) {
    let d = half(b, 0);
    for (block, values) in values.chunks_exact_mut(32).enumerate() {
        let scale = d * (iq4_xs_scale(b, block) - 32.0);
        nibbles(&b[8 + 16 * block..], values, |_, q| scale * f32::from(IQ4[q as usize]));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn every_type_has_its_row() {
        for (at, (kind, number, ..)) in TYPES.iter().enumerate() {
            assert_eq!((*kind as usize, GgmlType::of(*number)), (at, Ok(*kind)));
        }
        for number in [4, 9, 16, 43, u32::MAX] {
            assert!(GgmlType::of(number).unwrap_err().contains("which is not read; read are F32, F16"), "{number}");
        }
    }

    /// Bytes of blocks and the values that ggml computes of them, for every format.
    #[test]
    fn blocks_decode_to_the_bit() {
        let path = Path::new("../shared/reference/gguf/blocks.safetensors");
        let Ok(bytes) = std::fs::read(path) else {
            eprintln!("skipped: {} is not there", path.display());
            return;
        };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: HashMap<String, &[u8]> =
            file.tensors().into_iter().map(|(name, view)| (name.to_lowercase(), view.data())).collect();
        let mut seen = 0;
        for (kind, _, name, ..) in TYPES {
            let key = name.to_lowercase();
            let Some(bytes) = tensors.get(&format!("{key}.bytes")) else { continue };
            let wanted = tensors
                .iter()
                .find(|(name, _)| **name != format!("{key}.bytes") && name.starts_with(&format!("{key}.")));
            let wanted: Vec<u32> = wanted.unwrap().1.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            let mut values = vec![0.0; wanted.len()];
            kind.decode(bytes, &mut values);
            let differing = values.iter().zip(&wanted).filter(|(value, wanted)| value.to_bits() != **wanted).count();
            assert_eq!(differing, 0, "{name}: {differing} of {} differ", wanted.len());
            let repacked = kind.repack(bytes);
            let values = match kind.storage().unwrap() {
                Storage::Quantized(format) => crate::quant::dequantize(&repacked, format.code, wanted.len()),
                Storage::Blocks(code) => crate::quant::dequantize_blocks(&repacked, code, wanted.len()),
                Storage::Float(_) => unreachable!("{name}"),
            };
            let kept = values.iter().map(|value| value.to_bits()).eq(wanted);
            assert!(kept, "{name}: blocks in the layout of the device have other values");
            seen += 1;
        }
        let x: Vec<f32> = tensors["x"].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        for kind in [GgmlType::Q8_0, GgmlType::Q4_0] {
            let wanted = tensors[&format!("{}.bytes", kind.name().to_lowercase())];
            assert!(kind.encode(&x).unwrap() == wanted, "{kind:?}");
        }
        assert_eq!(GgmlType::Q4K.encode(&x), None);
        assert!(seen >= 13, "{seen} formats in {tensors:?}");
    }
}
