//! Weights that a file holds in 4 bits already, as bitsandbytes writes them: `P` packed, and beside it `P.absmax`, `P.quant_map`,
//! `P.nested_absmax`, `P.nested_quant_map` and the JSON of `P.quant_state.bitsandbytes__nf4` (or `__fp4`).

use serde_json::Value;

use super::json_fields::JsonFields;
use super::listing::{Blocks, RawTensor, TensorInfo};
use super::modules::HEAD;
use super::tensor_source::TensorSource;
use crate::quant::format::{Code4, Format4, NESTED_BLOCK, Storage};
use crate::quant::{Quantized, Scales, dynamic_map};
use crate::{Error, Result};

/// The 4-bit storage that `quantization_config` declares. The files decide, matrix by matrix.
pub(super) struct Declared {
    pub format: Format4,
    /// `llm_int8_skip_modules`: linear layers that are kept as they were. None is the head.
    skipped: Option<Vec<String>>,
}

impl Declared {
    /// True if the linear layer `module` is declared to be in 4 bits.
    pub(super) fn holds(&self, module: &str) -> bool {
        let is_part = |part: &String| format!(".{module}.").contains(&format!(".{part}."));
        match &self.skipped {
            None => module != HEAD,
            Some(skipped) => !skipped.iter().any(is_part),
        }
    }
}

/// Reads `quantization_config`: how the linear layers of a directory are quantized.
///
/// # Errors
/// Another method than bitsandbytes' `load_in_4bit`, or a code that is not known.
pub(super) fn from_fields(fields: &JsonFields, config: &Value) -> Result<Declared> {
    let error = |problem: String| {
        let supported = format!(
            "supported is bitsandbytes' load_in_4bit with {}; or give the original model in 16 or 32 bits",
            Code4::names()
        );
        fields.error("quantization_config", format!("{problem}; {supported}"))
    };
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    // As in transformers, old files without a method are of bitsandbytes.
    let unnamed = if flag("load_in_4bit") || flag("load_in_8bit") { "bitsandbytes" } else { "an unnamed method" };
    let method = text("quant_method").unwrap_or(unnamed);
    if method != "bitsandbytes" {
        return Err(error(format!("the weights are already quantized ({method})")));
    }
    if !flag("load_in_4bit") {
        return Err(error("the weights are already quantized, but not to 4 bits".to_owned()));
    }
    // transformers takes this code where the field is absent.
    let name = text("bnb_4bit_quant_type").unwrap_or(Code4::Fp4.name());
    let code: Code4 = name.parse().map_err(|_| error(format!("has the bnb_4bit_quant_type `{name}`")))?;
    let skipped = config.get("llm_int8_skip_modules").and_then(Value::as_array);
    let skipped = skipped.map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
    Ok(Declared { format: code.format(flag("bnb_4bit_use_double_quant")), skipped })
}

/// The format in which the files hold the matrix `name` in 4 bits; None where they hold it as floats. `declared` counts where the files
/// hold neither, so that the missing part is named.
pub(super) fn format_of(
    source: &TensorSource,
    name: &str,
    shape: &[usize],
    declared: Option<Format4>,
) -> Option<Format4> {
    let nested = || {
        let coded = source.get(&format!("{name}.absmax")).is_none() && source.has(&format!("{name}.absmax"));
        coded || source.has(&format!("{name}.nested_absmax"))
    };
    let found = Code4::ALL.into_iter().find(|code| source.has(&state_name(name, *code)));
    match found {
        Some(code) => Some(code.format(nested())),
        None => declared.filter(|_| source.get(name).is_none_or(|info| info.shape != shape)),
    }
}

/// The name of the tensor that has the JSON of a weight's quantization state.
pub fn state_name(weight: &str, code: Code4) -> String {
    format!("{weight}.quant_state.bitsandbytes__{code}")
}

/// A weight in 4 bits whose parts were found and checked, to be read when it is needed.
pub enum PackedWeight {
    /// As bitsandbytes writes it.
    Planes(Planes),
    /// Blocks of a GGUF file.
    Blocks(TensorInfo, u64),
}

/// The parts of a weight that bitsandbytes has quantized.
pub struct Planes {
    packed: RawTensor,
    absmax: RawTensor,
    nested: Option<(RawTensor, f32)>,
}

/// The storage in which the blocks of `name` lie on the device; None where the files hold no blocks.
pub(super) fn storage_of_blocks(source: &TensorSource, name: &str) -> Option<Storage> {
    source.get(name)?.blocks.as_ref()?.kind.storage()
}

impl PackedWeight {
    /// Finds the parts of `name`, a matrix of `[rows, columns]`.
    ///
    /// # Errors
    /// A part that is missing, or of another size, code or block size than bitsandbytes gives it.
    pub fn find(source: &TensorSource, name: &str, shape: [usize; 2], stored: Storage) -> Result<Self> {
        let stored = match stored.format4() {
            Some(format) if storage_of_blocks(source, name) != Some(stored) => format,
            _ => return Ok(Self::Blocks(source.require(name, &shape)?.clone(), shape[0] as u64)),
        };
        let elements = shape[0] as u64 * shape[1] as u64;
        let Format4 { code, double } = stored;
        let part = |suffix: &str, bytes: u64| source.require_bytes(&format!("{name}{suffix}"), bytes);
        let packed = part("", stored.packed_bytes(elements))?;
        let absmax = part(".absmax", stored.absmax_bytes(elements))?;
        let state_name = state_name(name, code);
        let state_tensor = source.require_any_bytes(&state_name)?;
        let wrong = |problem: String| Error::field(&state_tensor.path, &state_name, problem);
        let state: Value =
            serde_json::from_slice(&state_tensor.read()?).map_err(|e| wrong(format!("is not JSON: {e}")))?;
        let count = |key: &str| state.get(key).and_then(Value::as_u64);
        if count("blocksize") != Some(code.block()) {
            let has = state.get("blocksize");
            return Err(wrong(format!("has the blocksize {has:?}; supported is {}", code.block())));
        }
        let listed: Option<Vec<u64>> =
            state.get("shape").and_then(Value::as_array).map(|s| s.iter().filter_map(Value::as_u64).collect());
        // A part of a fused matrix has the state of the whole.
        let whole = source.fusion(name).map_or(shape.to_vec(), |fusion| fusion.shape.clone());
        let whole: Vec<u64> = whole.into_iter().map(|size| size as u64).collect();
        if listed.as_ref() != Some(&whole) {
            return Err(wrong(format!("has the shape {listed:?}, but config.json asks for {shape:?}")));
        }
        let values = &code.spec().values;
        let map = part(".quant_map", 4 * values.len() as u64)?.read_f32()?;
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-6;
        if map.iter().zip(values).any(differs) {
            return Err(Error::field(&packed.path, format!("{name}.quant_map"), format!("is not the code {code}")));
        }
        let nested = match double {
            false => None,
            true => {
                if count("nested_blocksize") != Some(NESTED_BLOCK) {
                    let has = state.get("nested_blocksize");
                    return Err(wrong(format!("has the nested_blocksize {has:?}; supported is {NESTED_BLOCK}")));
                }
                let offset = state.get("nested_offset").and_then(Value::as_f64);
                let offset = offset.ok_or_else(|| wrong("has no nested_offset, a number".to_owned()))? as f32;
                let map = part(".nested_quant_map", 4 * dynamic_map().len() as u64)?.read_f32()?;
                if map.iter().zip(dynamic_map()).any(differs) {
                    let problem = "is not bitsandbytes' dynamic map";
                    return Err(Error::field(&packed.path, format!("{name}.nested_quant_map"), problem));
                }
                Some((part(".nested_absmax", 4 * stored.nested_scales(elements))?, offset))
            }
        };
        Ok(Self::Planes(Planes { packed, absmax, nested }))
    }

    /// Bytes of all its parts in the file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Blocks(info, rows) => rows * info.blocks.as_ref().map_or(0, Blocks::row_bytes),
            Self::Planes(Planes { packed, absmax, nested }) => {
                let nested = nested.as_ref().map_or(0, |(absmax, _)| absmax.byte_len);
                packed.byte_len + absmax.byte_len + nested
            }
        }
    }

    /// The whole weight on the host.
    ///
    /// # Errors
    /// A file that cannot be read, or a scale that is not finite.
    pub fn read(&self) -> Result<Quantized> {
        match self {
            Self::Blocks(info, rows) => read_blocks(info, *rows),
            Self::Planes(Planes { packed, absmax, nested }) => {
                let scales = match nested {
                    None => Scales::Plain(finite(absmax)?),
                    Some((nested, offset)) => {
                        Scales::Nested { codes: absmax.read()?, absmax: finite(nested)?, offset: *offset }
                    }
                };
                Ok(Quantized { packed: packed.read()?, scales })
            }
        }
    }
}

fn read_blocks(info: &TensorInfo, rows: u64) -> Result<Quantized> {
    let Some(blocks) = &info.blocks else { unreachable!("only tensors with blocks are found as such") };
    let quantized = blocks.kind.repack(&blocks.packed_rows(info, rows)?);
    match quantized.scales.absmax().iter().position(|scale| !scale.is_finite()) {
        None => Ok(quantized),
        Some(at) => {
            let problem = format!("has a scale that is not finite (block {at}); the file is damaged");
            Err(Error::field(&info.path, &info.name, problem))
        }
    }
}

fn finite(tensor: &RawTensor) -> Result<Vec<f32>> {
    let values = tensor.read_f32()?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::field(
            &tensor.path,
            &tensor.name,
            format!("holds a value that is not finite (element {at}); the file is damaged"),
        )),
    }
}
