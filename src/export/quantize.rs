//! Writes model directories in bitsandbytes' 4-bit format, as transformers saves and loads them. The bytes equal those that
//! bitsandbytes computes.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::OutputDirectory;
use super::others::OtherParts;
use super::writer::{ModelWriter, Planned};
use crate::files::write_atomically;
use crate::model::companions;
use crate::model::config::CONFIG;
use crate::model::json_fields::{object_text, parse_object};
use crate::model::listing::TensorInfo;
use crate::model::model_directory::{copy_companions, float_bytes, refuse_links, say_tied};
use crate::model::modules::HEAD;
use crate::model::packed::state_name;
use crate::model::source::Source;
use crate::model::tensors::{TensorSpec, tensors};
use crate::quant::format::{Format4, NESTED_BLOCK};
use crate::quant::{self, Scales, dynamic_map};
use crate::setting::QUANT;
use crate::{Error, Result};

/// Settings of a quantization.
#[derive(Clone, Debug)]
pub struct QuantizeSettings {
    /// Directory of the model to quantize.
    pub model: PathBuf,
    /// Directory to write the quantized model to.
    pub out: PathBuf,
    /// 4-bit code of the linear layers, with or without double quantization.
    pub format: Format4,
    /// True to replace a model that `out` holds already.
    pub overwrite: bool,
    /// Largest number of tensor bytes in one file; larger models are split into shards.
    pub shard_bytes: u64,
}

/// Result of a quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    /// Number of quantized matrices: the linear layers, without embedding and head.
    pub matrices: usize,
    /// Bytes of all tensors before quantization.
    pub before: u64,
    /// Bytes of all tensors after quantization, scales included.
    pub after: u64,
}

/// Writes the quantized model. `progress` receives the number of matrices done and the total.
///
/// # Errors
/// The model cannot be read or is stored in 4 bits already, the output directory exists, or the disk is full.
pub fn quantize(settings: &QuantizeSettings, mut progress: impl FnMut(usize, usize)) -> Result<Quantization> {
    let source = Source::open(&settings.model)?;
    if !source.config.quantized.is_empty() {
        return Err(Error::file(&settings.model, "holds its weights in 4 bits already"));
    }
    if let Some(whole) = source.tensors.wholes().first() {
        let problem = format!(
            "has the experts of a layer as one tensor, {}, for which bitsandbytes' format has no place; train it with {}, which \
             quantizes while loading",
            whole.name(),
            QUANT.is(settings.format.code)
        );
        return Err(Error::file(&settings.model, problem));
    }
    refuse_links(&source.dir, false)?;
    let out = OutputDirectory::create(&settings.out, &settings.model, settings.overwrite)?;
    let expected = tensors(&source.config);
    let others = OtherParts::of(&source, &expected)?;
    // A fused tensor is quantized as a whole, which lies where its first part begins.
    let whole = |spec: &TensorSpec| -> Result<Option<(bool, TensorInfo)>> {
        let info = source.tensors.require(&spec.name, &spec.shape)?;
        let Some((name, shape)) = source.tensors.begun_by(&spec.name, &spec.shape) else { return Ok(None) };
        let byte_len = shape.iter().product::<usize>() as u64 * info.dtype.bytes();
        let info = TensorInfo { name: name.to_owned(), shape: shape.to_vec(), byte_len, ..info.clone() };
        Ok(Some((spec.is_projection(), info)))
    };
    let tensors: Vec<(bool, TensorInfo)> =
        expected.iter().filter_map(|spec| whole(spec).transpose()).collect::<Result<_>>()?;
    let planned = tensors.iter().flat_map(|(quantized, info)| parts(info, *quantized, settings));
    let planned: Vec<Planned> = planned.chain(others.planned()).collect();
    let matrices = tensors.iter().filter(|(quantized, _)| *quantized).count();
    let (mut done, mut sizes) = (0, Quantization { matrices, before: 0, after: 0 });
    let mut writer = ModelWriter::create(out.path(), planned, settings.shard_bytes)?;
    for (quantized, info) in &tensors {
        sizes.before += info.byte_len;
        let mut put = |name: &str, bytes: &[u8]| {
            sizes.after += bytes.len() as u64;
            writer.write(name, bytes)
        };
        let values = info.read_f32()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let problem = format!("holds a value that is not finite (element {at}); the file is damaged");
            return Err(Error::field(&info.path, &info.name, problem));
        }
        if *quantized {
            put_quantized(info, &values, settings, &mut put)?;
            done += 1;
            progress(done, matrices);
        } else {
            put(&info.name, &float_bytes(&values, info.dtype))?;
        }
    }
    others.write(&mut writer)?;
    writer.finish()?;
    copy_companions(&source.dir, out.path())?;
    write_config(&source, out.path(), settings, &others)?;
    out.finish()?;
    Ok(sizes)
}

/// The tensors that are written for one tensor of the model.
fn parts(info: &TensorInfo, quantized: bool, settings: &QuantizeSettings) -> Vec<Planned> {
    let part = |suffix: &str, dtype: Dtype, shape: Vec<usize>| Planned {
        name: format!("{}{suffix}", info.name),
        dtype,
        shape,
    };
    if !quantized {
        return vec![part("", info.dtype.dtype(), info.shape.clone())];
    }
    let Format4 { code, double } = settings.format;
    let elements = info.shape.iter().map(|size| *size as u64).product();
    let mut all = vec![part("", Dtype::U8, vec![settings.format.packed_bytes(elements) as usize, 1])];
    let absmax = if double { Dtype::U8 } else { Dtype::F32 };
    all.push(part(".absmax", absmax, vec![elements.div_ceil(code.block()) as usize]));
    if double {
        all.push(part(".nested_absmax", Dtype::F32, vec![settings.format.nested_scales(elements) as usize]));
        all.push(part(".nested_quant_map", Dtype::F32, vec![dynamic_map().len()]));
    }
    all.push(part(".quant_map", Dtype::F32, vec![code.spec().values.len()]));
    // The length of the JSON depends on the digits of the offset, so it is padded to a fixed length.
    all.push(Planned { name: state_name(&info.name, code), dtype: Dtype::U8, shape: vec![STATE_BYTES] });
    all
}

/// Length of a quantization state's JSON, padded with spaces.
const STATE_BYTES: usize = 256;

fn put_quantized(
    info: &TensorInfo,
    values: &[f32],
    settings: &QuantizeSettings,
    put: &mut impl FnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    let Format4 { code, double } = settings.format;
    let quantized = quant::quantize(values, code, double);
    let name = |suffix: &str| format!("{}{suffix}", info.name);
    let mut state = json!({
        "quant_type": code.name(), "blocksize": code.block(), "dtype": info.dtype.torch_name(), "shape": info.shape,
    });
    put(&info.name, &quantized.packed)?;
    match &quantized.scales {
        Scales::Plain(absmax) => put(&name(".absmax"), bytemuck::cast_slice(absmax))?,
        Scales::Nested { codes, absmax, offset } => {
            put(&name(".absmax"), codes)?;
            put(&name(".nested_absmax"), bytemuck::cast_slice(absmax))?;
            put(&name(".nested_quant_map"), bytemuck::cast_slice(dynamic_map()))?;
            state["nested_blocksize"] = NESTED_BLOCK.into();
            state["nested_dtype"] = "float32".into();
            // Python reads a double that has exactly the value of the f32.
            state["nested_offset"] = f64::from(*offset).into();
        }
    }
    put(&name(".quant_map"), bytemuck::cast_slice(&code.spec().values))?;
    let mut state = state.to_string().into_bytes();
    state.resize(STATE_BYTES, b' ');
    put(&state_name(&info.name, code), &state)
}

fn write_config(from: &Source, to: &Path, settings: &QuantizeSettings, others: &OtherParts) -> Result<()> {
    let path = from.dir.join(CONFIG);
    let mut config = parse_object(&path, &companions::text(&path)?)?;
    say_tied(&mut config, from.config.tie_word_embeddings);
    let skipped: Vec<String> = std::iter::once(HEAD.to_owned()).chain(others.modules()).collect();
    let dtype = config.get("torch_dtype").or_else(|| config.get("dtype")).and_then(Value::as_str).unwrap_or("float32");
    let quantization = json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": true,
        "load_in_8bit": false,
        "bnb_4bit_quant_type": settings.format.code.name(),
        "bnb_4bit_use_double_quant": settings.format.double,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
    });
    config.insert("quantization_config".to_owned(), quantization);
    write_atomically(&to.join(CONFIG), object_text(&config).as_bytes())
}
