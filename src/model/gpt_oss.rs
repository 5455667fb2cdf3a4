//! The experts of gpt-oss: tensors of all experts of a layer, in which outputs of gate and up alternate, listed as matrices of each expert.
//!
//! Floats are `[experts, in, out]` (`gate_up_proj`, `down_proj`). MXFP4 is `[experts, out, in / 32, 16]` bytes of two codes, the lower four
//! bits first, beside a scale for each block, the exponent of a power of two with an offset of 127 (`_blocks`, `_scales`).

use super::config::ModelConfig;
use super::gguf_blocks::GgmlType;
use super::listing::{Blocks, Planes, Strides, TensorInfo};
use super::modules::{EXPERTS, Projection, in_layer};
use super::tensor_source::TensorSource;
use crate::quant::format::Float;
use crate::{Error, Result};

/// Values that share a scale.
const BLOCK: usize = 32;

/// One tensor of all experts of a layer.
struct Stack<'a> {
    /// The name of its module, and its own below it.
    module: String,
    name: &'static str,
    /// Its parts: gate and up, whose outputs alternate, or down alone.
    parts: &'a [Projection],
    experts: usize,
    outputs: usize,
    inputs: usize,
}

/// Lists the experts of a layer as matrices and biases of their own.
///
/// # Errors
/// Tensors of other shapes than the configuration asks for.
pub(super) fn list_experts(source: &mut TensorSource, config: &ModelConfig, layer: usize) -> Result<()> {
    let Some(experts) = config.experts_of(layer) else { return Ok(()) };
    let (hidden, inner) = (config.hidden_size, experts.intermediate_size);
    let stack = |name, parts, outputs, inputs| {
        let module = in_layer(layer, EXPERTS);
        Stack { module, name, parts, experts: experts.count, outputs, inputs }
    };
    for stack in [
        stack("gate_up_proj", &[Projection::Gate, Projection::Up], 2 * inner, hidden),
        stack("down_proj", &[Projection::Down], hidden, inner),
    ] {
        list_weights(source, &stack, layer)?;
        list_biases(source, &stack)?;
    }
    Ok(())
}

fn list_weights(source: &mut TensorSource, stack: &Stack, layer: usize) -> Result<()> {
    let Stack { module, name, parts, experts, outputs, inputs } = stack;
    let whole = format!("{module}.{name}");
    let [blocks_name, scales_name] = ["blocks", "scales"].map(|plane| format!("{whole}_{plane}"));
    let rows = outputs / parts.len();
    let values = rows as u64 * *inputs as u64;
    let matrices = |info: &dyn Fn(usize, usize) -> TensorInfo| -> Vec<TensorInfo> {
        let of_expert = |expert: usize| (0..parts.len()).map(move |part| (expert, part));
        let named = |(expert, part): (usize, usize)| {
            let name = format!("{}.weight", in_layer(layer, &parts[part].module_of_expert(expert)));
            TensorInfo { name, shape: vec![rows, *inputs], ..info(expert, part) }
        };
        (0..*experts).flat_map(of_expert).map(named).collect()
    };
    if source.has(&blocks_name) {
        if !inputs.is_multiple_of(BLOCK) {
            let problem = format!("is in blocks of {BLOCK} values, but config.json asks for {inputs} inputs");
            return Err(Error::field(source.path(), &blocks_name, problem));
        }
        let blocks = source.require_raw(&blocks_name, &[*experts, *outputs, inputs / BLOCK, BLOCK / 2])?;
        let scales = source.require_raw(&scales_name, &[*experts, *outputs, inputs / BLOCK])?;
        let all = matrices(&|expert, part| TensorInfo {
            name: String::new(),
            dtype: Float::Bf16,
            shape: Vec::new(),
            path: blocks.path.clone(),
            file_offset: blocks.file_offset,
            byte_len: 2 * values,
            strides: None,
            blocks: Some(Blocks {
                kind: GgmlType::Mxfp4,
                columns: *inputs as u64,
                first_row: expert as u64 * *outputs as u64 + part as u64,
                head: None,
                offset: 0.0,
                planes: Some(Planes {
                    scales: scales.path.clone(),
                    scales_offset: scales.file_offset,
                    step: parts.len() as u64,
                }),
            }),
        });
        source.split(&[&blocks_name, &scales_name], all);
    } else {
        let info = source.require(&whole, &[*experts, *inputs, *outputs])?.clone();
        let width = info.dtype.bytes();
        let strides = Strides { columns: *inputs as u64, row: parts.len() as u64, column: *outputs as u64 };
        let all = matrices(&|expert, part| TensorInfo {
            file_offset: info.file_offset + width * (expert as u64 * *inputs as u64 * *outputs as u64 + part as u64),
            byte_len: width * values,
            strides: Some(strides),
            ..info.clone()
        });
        source.split(&[&whole], all);
    }
    Ok(())
}

fn list_biases(source: &mut TensorSource, stack: &Stack) -> Result<()> {
    let Stack { module, name, parts, experts, outputs, .. } = stack;
    let whole = format!("{module}.{name}_bias");
    let info = source.require(&whole, &[*experts, *outputs])?.clone();
    let (width, rows) = (info.dtype.bytes(), outputs / parts.len());
    let strides = Strides { columns: rows as u64, row: *outputs as u64, column: parts.len() as u64 };
    let bias = |(part, projection): (usize, &Projection)| TensorInfo {
        name: format!("{module}.{}_bias", projection.name()),
        shape: vec![*experts, rows],
        file_offset: info.file_offset + width * part as u64,
        byte_len: width * *experts as u64 * rows as u64,
        strides: Some(strides),
        ..info.clone()
    };
    let all = parts.iter().enumerate().map(bias).collect();
    source.split(&[&whole], all);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use half::bf16;

    use crate::model::listing::RawTensor;
    use crate::model::packed::PackedWeight;
    use crate::model::source::Source;
    use crate::quant;
    use crate::quant::format::Code4;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn whole(source: &Source, name: &str) -> RawTensor {
        source.tensors.wholes().iter().find(|whole| whole.name() == name).unwrap().raw()
    }

    /// The values of a tensor, which are the same where a range of them is read.
    fn values(source: &Source, name: &str, shape: &[usize]) -> Vec<f32> {
        let info = source.tensors.require(name, shape).unwrap();
        let all = info.read_f32().unwrap();
        let (from, to) = (all.len() / 3, all.len() - 1);
        assert_eq!(info.read_f32_range(from as u64..to as u64).unwrap(), all[from..to]);
        all
    }

    #[test]
    fn floats_of_all_experts_are_matrices_and_biases_of_each() {
        let source = Source::open(&fixture("gpt_oss")).unwrap();
        let (experts, hidden, inner) = (9, 36, 20);
        let of = |name: &str| -> Vec<f32> {
            let bytes = whole(&source, &format!("model.layers.1.mlp.experts.{name}")).read().unwrap();
            bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        };
        let (gate_up, down) = (of("gate_up_proj"), of("down_proj"));
        let (gate_up_bias, down_bias) = (of("gate_up_proj_bias"), of("down_proj_bias"));
        for expert in [0, 4, 8] {
            let name = |projection: &str| format!("model.layers.1.mlp.experts.{expert}.{projection}.weight");
            for (part, projection) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                let at = |i: usize| (expert * hidden + i % hidden) * 2 * inner + 2 * (i / hidden) + part;
                let want: Vec<f32> = (0..inner * hidden).map(|i| gate_up[at(i)]).collect();
                assert_eq!(values(&source, &name(projection), &[inner, hidden]), want);
            }
            let at = |i: usize| (expert * inner + i % inner) * hidden + i / inner;
            let want: Vec<f32> = (0..hidden * inner).map(|i| down[at(i)]).collect();
            assert_eq!(values(&source, &name("down_proj"), &[hidden, inner]), want);
        }
        let ups: Vec<f32> = gate_up_bias.iter().skip(1).step_by(2).copied().collect();
        assert_eq!(values(&source, "model.layers.1.mlp.experts.up_proj_bias", &[experts, inner]), ups);
        assert_eq!(values(&source, "model.layers.1.mlp.experts.down_proj_bias", &[experts, hidden]), down_bias);
    }

    #[test]
    fn mxfp4_is_decoded_and_kept_by_its_definition() {
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let source = Source::open(&fixture("gpt_oss_mxfp4")).unwrap();
        let (hidden, inner, expert) = (64, 32, 3);
        let plane = |name: &str| whole(&source, &format!("model.layers.1.mlp.experts.{name}")).read().unwrap();
        let mut kept = source.clone();
        kept.keep_blocks().unwrap();
        for (tensor, projection, part, parts, shape) in [
            ("gate_up_proj", "gate_proj", 0, 2, [inner, hidden]),
            ("gate_up_proj", "up_proj", 1, 2, [inner, hidden]),
            ("down_proj", "down_proj", 0, 1, [hidden, inner]),
        ] {
            let (codes, scales) = (plane(&format!("{tensor}_blocks")), plane(&format!("{tensor}_scales")));
            let [rows, columns] = shape;
            let value = |i: usize| {
                let row = expert * rows * parts + i / columns * parts + part;
                let at = row * columns + i % columns;
                let code = codes[at / 2] >> (4 * (at % 2)) & 15;
                let sign = if code < 8 { 1.0 } else { -1.0 };
                sign * VALUES[usize::from(code % 8)] * (f32::from(scales[at / 32]) - 127.0).exp2()
            };
            let want: Vec<f32> = (0..rows * columns).map(value).collect();
            let name = format!("model.layers.1.mlp.experts.{expert}.{projection}.weight");
            assert_eq!(values(&source, &name, &shape), want, "{projection}");
            let storage = kept.config.quantized[&name];
            assert_eq!(storage, Code4::Mxfp4.storage(false));
            let packed = PackedWeight::find(&kept.tensors, &name, shape, storage).unwrap().read().unwrap();
            assert_eq!(quant::dequantize(&packed, Code4::Mxfp4, want.len()), want, "{projection} kept");
        }
        assert!(!kept.config.quantized.contains_key("model.layers.1.self_attn.q_proj.weight"));
    }
}
