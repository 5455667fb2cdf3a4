//! The formats that weights are stored in: floats, 4-bit codes with a scale for each block, and the integer codes of GGUF's blocks.
//!
//! Each format has one name, which settings, the command line, files, reports and caches share. A further 4-bit code is a variant of
//! [`Code4`] with an entry in [`Code4::spec`]: the device's kernels take the block size and the 16 values from there.

use std::fmt;
use std::str::FromStr;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// Elements that share one absmax: the default `blocksize` of bitsandbytes, and that of QLoRA (Dettmers et al. 2023, section 3).
const BLOCK: u64 = 64;
/// Absmax values that share one nested scale under double quantization (QLoRA, section 3; `nested_blocksize` of bitsandbytes).
pub const NESTED_BLOCK: u64 = 256;
/// Index of the first nested scale in a `nested` buffer of f32: the 256 values of the 8-bit code and the offset stand before it.
pub const NESTED_SCALES_AT: u64 = 257;

/// A floating-point type of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Float {
    /// 32 bits
    F32,
    /// 16 bits, 10 of them mantissa: largest value 65504
    F16,
    /// 16 bits, 7 of them mantissa: the range of f32
    Bf16,
}

impl Float {
    /// All types, in the order of their declaration.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The name in settings, reports and the autotune table's keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The name in `config.json` (`torch_dtype`) and in the quantization state of bitsandbytes.
    pub const fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type of a tensor in a safetensors file.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A 4-bit code: each element is the index of one of 16 values in [-1, 1], times the absmax of its block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Code4 {
    /// Quantiles of a normal distribution
    #[default]
    Nf4,
    /// A float with one sign bit, two exponent bits and one mantissa bit
    Fp4,
    /// Eighths from -1 to 7/8: GGUF's Q4_0
    #[cfg_attr(feature = "cli", value(skip))]
    Q40,
    /// Values of GGUF's IQ4_NL and IQ4_XS
    #[cfg_attr(feature = "cli", value(skip))]
    Iq4,
    /// Values of MXFP4
    #[cfg_attr(feature = "cli", value(skip))]
    Mxfp4,
}

/// One 4-bit code as data.
#[derive(Debug)]
pub struct CodeSpec {
    /// The name in settings, files and reports, and the value of `bnb_4bit_quant_type`.
    pub name: &'static str,
    /// The name of the code with double quantization, in the autotune table's keys and in caches.
    pub nested_name: &'static str,
    /// Elements of the flattened matrix that share one absmax; a multiple of 8, so that blocks begin at whole words.
    pub block: u64,
    /// The value of each index. The largest magnitude is at most 1.
    pub values: [f32; 16],
}

/// `create_normal_map` of bitsandbytes (QLoRA, appendix E).
const NF4: CodeSpec = CodeSpec {
    name: "nf4",
    nested_name: "nf4 nested",
    block: BLOCK,
    values: [
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
    ],
};

/// `get_4bit_type("fp4")` of bitsandbytes: bit 3 is the sign, and both zeros are +0.
const FP4: CodeSpec = CodeSpec {
    name: "fp4",
    nested_name: "fp4 nested",
    block: BLOCK,
    values: [
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
    ],
};

/// Elements that share one scale in GGUF's blocks, and in the sub-blocks of its blocks of 256.
const GGUF_BLOCK: u64 = 32;

/// GGUF's Q4_0, whose values are eight times as large. Powers of two change no bit of a product with the scale.
const Q4_0: CodeSpec = CodeSpec {
    name: "q4_0",
    nested_name: "q4_0 nested",
    block: GGUF_BLOCK,
    values: [
        -1.0, -0.875, -0.75, -0.625, -0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875,
    ],
};

/// `kvalues_iq4nl` of ggml, divided by 128.
const IQ4: CodeSpec = CodeSpec {
    name: "iq4",
    nested_name: "iq4 nested",
    block: GGUF_BLOCK,
    values: [
        -0.9921875, -0.8125, -0.6484375, -0.5078125, -0.3828125, -0.2734375, -0.171875, -0.078125, 0.0078125,
        0.1015625, 0.1953125, 0.296875, 0.4140625, 0.5390625, 0.6953125, 0.8828125,
    ],
};

/// `kvalues_mxfp4` of ggml, divided by 16: floats with one sign bit, two exponent bits and one mantissa bit.
const MXFP4: CodeSpec = CodeSpec {
    name: "mxfp4",
    nested_name: "mxfp4 nested",
    block: GGUF_BLOCK,
    values: [
        0.0, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 0.0, -0.0625, -0.125, -0.1875, -0.25, -0.375, -0.5, -0.75,
    ],
};

impl Code4 {
    /// The codes that weights are quantized to, in the order of their declaration.
    pub const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// The codes of packed blocks in GGUF files, which are kept as they are. They have no double quantization.
    pub const OF_BLOCKS: [Self; 3] = [Self::Q40, Self::Iq4, Self::Mxfp4];

    /// All codes that kernels decode, in the order of their declaration.
    pub const DECODED: [Self; 5] = [Self::Nf4, Self::Fp4, Self::Q40, Self::Iq4, Self::Mxfp4];

    /// The code's entry.
    pub const fn spec(self) -> &'static CodeSpec {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
            Self::Q40 => &Q4_0,
            Self::Iq4 => &IQ4,
            Self::Mxfp4 => &MXFP4,
        }
    }

    /// The name in settings, files and reports, and the value of `bnb_4bit_quant_type`.
    pub const fn name(self) -> &'static str {
        self.spec().name
    }

    /// Elements that share one absmax.
    pub const fn block(self) -> u64 {
        self.spec().block
    }

    /// This code with or without double quantization.
    pub const fn format(self, double: bool) -> Format4 {
        Format4 { code: self, double }
    }

    /// The storage of weights in this code.
    pub const fn storage(self, double: bool) -> Storage {
        Storage::Quantized(self.format(double))
    }

    /// The names of all codes as a phrase: `a or b`.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(" or ")
    }
}

/// A 4-bit format: the code of the elements, and how their block scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format4 {
    /// The code of the elements.
    pub code: Code4,
    /// The absmax values are 8-bit codes (double quantization) instead of f32.
    pub double: bool,
}

impl Format4 {
    /// The name in the autotune table's keys and in caches.
    pub const fn name(self) -> &'static str {
        if self.double { self.code.spec().nested_name } else { self.code.spec().name }
    }

    /// Bytes of the packed codes of `elements` weights, two codes a byte.
    pub const fn packed_bytes(self, elements: u64) -> u64 {
        elements.div_ceil(2)
    }

    /// Bytes of the absmax values of `elements` weights: one for each block, 4 bytes, or 1 byte under double quantization.
    pub const fn absmax_bytes(self, elements: u64) -> u64 {
        elements.div_ceil(self.code.block()) * if self.double { 1 } else { 4 }
    }

    /// The f32 scales of the 8-bit absmax codes of `elements` weights: none without double quantization.
    pub const fn nested_scales(self, elements: u64) -> u64 {
        if self.double { elements.div_ceil(self.code.block()).div_ceil(NESTED_BLOCK) } else { 0 }
    }
}

/// The integers of GGUF's blocks: an element is `scale * code`, or `scale * code - minimum`. Scale and minimum are those of its block, in
/// f32. Each variant has the name of ggml's type that it is for, and holds other types too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockCode {
    /// 4 bits, a minimum for each 32 values: Q4_1 and Q4_K
    Q4K,
    /// 4 bits, a minimum for each 16 values: Q2_K
    Q2K,
    /// 4 bits with sign, a scale for each 16 values: Q3_K
    Q3K,
    /// 8 bits, a minimum for each 32 values: Q5_1 and Q5_K
    Q5K,
    /// 8 bits with sign, a scale for each 16 values: Q6_K
    Q6K,
    /// 8 bits with sign, a scale for each 32 values: Q5_0 and Q8_0
    Q80,
}

impl BlockCode {
    /// All variants, in the order of their declaration.
    pub const ALL: [Self; 6] = [Self::Q4K, Self::Q2K, Self::Q3K, Self::Q5K, Self::Q6K, Self::Q80];

    /// The name in reports and the autotune table's keys.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4K => "q4_k",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Q80 => "q8_0",
        }
    }

    /// Bits of a code.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Q4K | Self::Q2K | Self::Q3K => 4,
            Self::Q5K | Self::Q6K | Self::Q80 => 8,
        }
    }

    /// Elements that share a scale.
    pub const fn block(self) -> u64 {
        match self {
            Self::Q2K | Self::Q3K | Self::Q6K => 16,
            Self::Q4K | Self::Q5K | Self::Q80 => GGUF_BLOCK,
        }
    }

    /// True if a block has a minimum beside its scale. Its codes are without sign then.
    pub const fn has_minimum(self) -> bool {
        matches!(self, Self::Q4K | Self::Q2K | Self::Q5K)
    }

    /// The f32 values of a block: its scale, and its minimum after it.
    pub const fn of_block(self) -> u64 {
        if self.has_minimum() { 2 } else { 1 }
    }

    /// Bytes of the codes of `elements` weights.
    pub const fn code_bytes(self, elements: u64) -> u64 {
        (elements * self.bits() as u64).div_ceil(8)
    }

    /// Bytes of the scales and minima of `elements` weights.
    pub const fn scale_bytes(self, elements: u64) -> u64 {
        4 * self.of_block() * elements.div_ceil(self.block())
    }
}

/// How a weight matrix is stored, in files and on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// One float for each element.
    Float(Float),
    /// 4-bit codes and their block scales.
    Quantized(Format4),
    /// Integer codes with scales, and minima, of their blocks.
    Blocks(BlockCode),
}

impl Storage {
    /// Every storage, for the tests that walk all variants.
    pub const ALL: [Self; Float::ALL.len() + 2 * Code4::ALL.len() + Code4::OF_BLOCKS.len() + BlockCode::ALL.len()] = {
        const OF_BLOCKS_AT: usize = Float::ALL.len() + 2 * Code4::ALL.len();
        const INTEGERS_AT: usize = OF_BLOCKS_AT + Code4::OF_BLOCKS.len();
        let mut all = [Self::Float(Float::F32); INTEGERS_AT + BlockCode::ALL.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = match i.checked_sub(Float::ALL.len()) {
                None => Self::Float(Float::ALL[i]),
                Some(_) if i >= INTEGERS_AT => Self::Blocks(BlockCode::ALL[i - INTEGERS_AT]),
                Some(_) if i >= OF_BLOCKS_AT => Code4::OF_BLOCKS[i - OF_BLOCKS_AT].storage(false),
                Some(i) => Code4::ALL[i / 2].storage(i % 2 == 1),
            };
            i += 1;
        }
        all
    };

    /// The name in the autotune table's keys and in caches.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float(float) => float.name(),
            Self::Quantized(format) => format.name(),
            Self::Blocks(code) => code.name(),
        }
    }

    /// The 4-bit code and its scales; None for other storage.
    pub const fn format4(self) -> Option<Format4> {
        match self {
            Self::Quantized(format) => Some(format),
            Self::Float(_) | Self::Blocks(_) => None,
        }
    }

    /// True for blocks of a GGUF file as they are.
    pub fn is_kept(self) -> bool {
        match self {
            Self::Float(_) => false,
            Self::Quantized(format) => Code4::OF_BLOCKS.contains(&format.code),
            Self::Blocks(_) => true,
        }
    }

    /// Bytes of the values and of the scales of `elements` weights.
    pub fn bytes(self, elements: u64) -> (u64, u64) {
        match self {
            Self::Float(float) => (elements * float.bytes(), 0),
            Self::Quantized(format) => {
                (format.packed_bytes(elements), self.scale_bytes(elements).into_iter().flatten().sum())
            }
            Self::Blocks(code) => (code.code_bytes(elements), code.scale_bytes(elements)),
        }
    }

    /// Bytes of the `absmax` and `nested` buffers of `elements` weights; None where the storage has no such buffer.
    pub fn scale_bytes(self, elements: u64) -> [Option<u64>; 2] {
        match self {
            Self::Float(_) => [None, None],
            Self::Quantized(format) => {
                let nested = 4 * (NESTED_SCALES_AT + format.nested_scales(elements));
                [Some(format.absmax_bytes(elements)), format.double.then_some(nested)]
            }
            Self::Blocks(code) => [Some(code.scale_bytes(elements)), None],
        }
    }
}

/// A name that no format has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no format of weights; known are {known}")]
pub struct UnknownFormat {
    /// The name as it was given.
    pub name: String,
    /// The names that were looked through.
    pub known: String,
}

fn find<T: Copy>(all: &[T], name_of: fn(T) -> &'static str, name: &str) -> Result<T, UnknownFormat> {
    all.iter().copied().find(|format| name_of(*format) == name).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|format| name_of(*format)).collect();
        UnknownFormat { name: name.to_owned(), known: known.join(", ") }
    })
}

impl FromStr for Float {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        find(&Self::ALL, Self::name, name)
    }
}

impl FromStr for Code4 {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        find(&Self::ALL, Self::name, name)
    }
}

impl FromStr for Storage {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        find(&Self::ALL, Self::name, name)
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Code4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name_alone() {
        for storage in Storage::ALL {
            assert_eq!(storage.name().parse(), Ok(storage));
            assert_eq!(Storage::ALL.iter().filter(|other| other.name() == storage.name()).count(), 1, "{storage:?}");
        }
        assert_eq!(Storage::ALL[0], Storage::Float(Float::F32));
        let kept = Storage::ALL.iter().filter(|storage| storage.is_kept()).count();
        assert_eq!(kept, Code4::OF_BLOCKS.len() + BlockCode::ALL.len());
        assert_eq!(Storage::ALL.last(), Some(&Storage::Blocks(BlockCode::Q80)));
        let unknown = "nf3".parse::<Code4>().unwrap_err().to_string();
        assert!(unknown.starts_with("`nf3` is no format of weights; known are nf4, fp4"), "{unknown}");
    }

    #[test]
    fn settings_and_the_command_line_use_the_same_names() {
        for code in Code4::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            #[cfg(feature = "cli")]
            assert_eq!(clap::ValueEnum::to_possible_value(&code).unwrap().get_name(), code.name());
        }
        for float in Float::ALL {
            assert_eq!(serde_json::to_value(float).unwrap(), float.name());
            assert_eq!(format!("{:?}", float.dtype()).to_lowercase(), float.name());
            #[cfg(feature = "cli")]
            assert_eq!(clap::ValueEnum::to_possible_value(&float).unwrap().get_name(), float.name());
        }
    }

    #[test]
    fn codes_reach_one_and_their_blocks_are_whole_words() {
        for code in Code4::DECODED {
            let largest = code.spec().values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert!(
                (0.75..=1.0).contains(&largest),
                "{code}: kernels take a block's absmax as a bound of its elements"
            );
            assert!(code.block().is_multiple_of(8), "{code}");
        }
    }

    #[test]
    fn planes_have_the_bytes_of_bitsandbytes() {
        assert_eq!(Code4::Nf4.storage(false).bytes(65), (33, 8));
        let elements = 64 * 257;
        assert_eq!(Code4::Nf4.storage(true).scale_bytes(elements), [Some(257), Some(4 * (257 + 2))]);
        assert_eq!(Storage::Float(Float::Bf16).bytes(3), (6, 0));
        assert_eq!(Storage::Blocks(BlockCode::Q4K).bytes(256), (128, 64));
        assert_eq!(Storage::Blocks(BlockCode::Q6K).bytes(256), (256, 64));
        assert_eq!(Storage::Blocks(BlockCode::Q80).bytes(65), (65, 12));
    }
}
