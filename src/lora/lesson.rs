//! The arithmetic of LoRA and of 4-bit weights on a model's own numbers, few enough to be shown: one block of a weight, and what an
//! adapter changes at one linear layer.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::adapter_file::{LoadedAdapter, follow_vocabulary, load_for};
use super::factors::Factor;
use super::targets::{LoraModule, Place};
use crate::model::modules::Projection;
use crate::model::source::Source;
use crate::model::tensors::{EMBEDDING, TensorKind, tensors};
use crate::quant::format::Code4;
use crate::quant::{Scales, dequantize, quantize};
use crate::{Error, Result};

/// Outputs of a linear layer that are shown.
pub const SHOWN_OUTPUTS: usize = 32;
/// Elements of a matrix that are read at a time.
const PIECE: usize = 1 << 20;
/// Rounds of the Jacobi method; it converges in fewer.
const MOST_SWEEPS: usize = 40;

/// A block of a weight before and after its quantization to NF4.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct WeightBlock {
    /// Names of the matrices that there are to choose from.
    pub matrices: Vec<String>,
    /// Name of the matrix that the block is of.
    pub matrix: String,
    /// Number of the block in the flattened matrix, from 0.
    pub block: usize,
    /// Number of blocks of the matrix.
    pub blocks: usize,
    /// The 64 weights of the block.
    pub weights: Vec<f32>,
    /// The 16 values of NF4, ascending.
    pub levels: Vec<f32>,
    /// Index into `levels` for each weight.
    pub codes: Vec<u8>,
    /// The largest magnitude of the block.
    pub absmax: f32,
    /// `absmax * levels[code]` for each weight.
    pub decoded: Vec<f32>,
    /// Root mean square of the differences between `weights` and `decoded`.
    pub error: f64,
}

/// The part of a linear layer's outputs that an adapter adds, for one input.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct ModuleUpdate {
    /// Names of the adapted linear layers that there are to choose from: those that read hidden states.
    pub modules: Vec<String>,
    /// Index of the shown one in `modules`.
    pub module: usize,
    /// Number of its outputs.
    pub outputs: usize,
    /// Number of its inputs.
    pub inputs: usize,
    /// Rank of the update.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Factor of `B A x`.
    pub scale: f32,
    /// The first outputs of `W x`, at most [`SHOWN_OUTPUTS`]. `x` is a token's embedding divided by its root mean square.
    pub base: Vec<f64>,
    /// The same outputs of `scale B A x`.
    pub update: Vec<f64>,
    /// The same outputs of the merged weight, `(W + scale B A) x`.
    pub merged: Vec<f64>,
    /// The singular values of `scale B A`, descending; as many as the rank.
    pub singular_values: Vec<f64>,
    /// The Frobenius norm of `W`.
    pub weight_norm: f64,
    /// The Frobenius norm of `scale B A`.
    pub update_norm: f64,
}

/// Quantizes one block of a matrix of the model in `dir`; without a name, of its first matrix. A block beyond the last one counts on from
/// the first.
///
/// # Errors
/// Files that cannot be read, or no matrix of this name.
pub fn weight_block(dir: &Path, matrix: Option<&str>, block: usize) -> Result<WeightBlock> {
    let source = Source::open(dir)?;
    let mut specs = tensors(&source.config);
    specs.retain(|spec| matches!(spec.kind, TensorKind::Projection(_)));
    let chosen = specs.iter().find(|spec| matrix.is_none_or(|name| spec.name == name));
    let Some((spec, [rows, cols])) =
        chosen.and_then(|spec| Some((spec, <[usize; 2]>::try_from(spec.shape.as_slice()).ok()?)))
    else {
        return Err(Error::Argument("the model has no such matrix".to_owned()));
    };
    let size = Code4::Nf4.block() as usize;
    let blocks = (rows * cols / size).max(1);
    let block = block % blocks;
    let weights = elements(&source, &spec.name, [rows, cols], block * size..((block + 1) * size).min(rows * cols))?;
    let matrix = spec.name.clone();
    let matrices = specs.into_iter().map(|spec| spec.name).collect();
    Ok(WeightBlock { matrices, matrix, block, blocks, ..quantized(weights) })
}

/// A block of weights and what NF4 makes of it, without its place in a model.
fn quantized(weights: Vec<f32>) -> WeightBlock {
    let quantized = quantize(&weights, Code4::Nf4, false);
    let decoded = dequantize(&quantized, Code4::Nf4, weights.len());
    let absmax = match &quantized.scales {
        Scales::Plain(absmax) => absmax.first().copied().unwrap_or_default(),
        Scales::Nested { .. } => 0.0,
    };
    let codes = (0..weights.len()).map(|i| quantized.packed[i / 2] >> (4 * (1 - i % 2)) & 15).collect();
    let squares: f64 = weights.iter().zip(&decoded).map(|(w, d)| f64::from(w - d).powi(2)).sum();
    WeightBlock {
        matrices: Vec::new(),
        matrix: String::new(),
        block: 0,
        blocks: 1,
        levels: Code4::Nf4.spec().values.to_vec(),
        codes,
        absmax,
        error: (squares / weights.len().max(1) as f64).sqrt(),
        decoded,
        weights,
    }
}

/// Computes what the adapter in the directory `adapter` adds to one of the linear layers of the model in `dir` that it adapts, with the
/// embedding of `token` as their input.
///
/// # Errors
/// Files that cannot be read or are not of this model, a token that the model does not have, or no such layer.
pub fn module_update(dir: &Path, adapter: &Path, module: usize, token: usize) -> Result<ModuleUpdate> {
    let mut source = Source::open(dir)?;
    follow_vocabulary(adapter, &mut source)?;
    update_of(&source, &load_for(adapter, &source)?, module, token)
}

/// True for a layer whose input is a hidden state, and to whose output plain LoRA is added.
fn is_shown(module: &LoraModule) -> bool {
    use Projection::{ConvIn, Gate, K, LinearQkv, Q, Up, V};
    let reads_hidden = matches!(module.place, Place::Layer(_, Q | K | V | Gate | Up | ConvIn | LinearQkv));
    reads_hidden && module.is_adapted() && !module.factors.contains(&Factor::Magnitude)
}

fn update_of(source: &Source, adapter: &LoadedAdapter, wanted: usize, token: usize) -> Result<ModuleUpdate> {
    let config = &source.config;
    let shown: Vec<usize> = (0..adapter.modules.len()).filter(|at| is_shown(&adapter.modules[*at])).collect();
    let (Some(at), true) = (shown.get(wanted).copied(), token < config.vocab_rows) else {
        let problem = "the adapter has no such module without DoRA, or the model no such token";
        return Err(Error::Argument(problem.to_owned()));
    };
    let module = &adapter.modules[at];
    let ([outputs, inputs], rank, scale) = (module.features, module.rank, f64::from(module.scale));
    let a = adapter.tensors.a(&adapter.modules, at);
    let b = &adapter.tensors.modules[at][Factor::B];

    let row = token * inputs..(token + 1) * inputs;
    let embedding = elements(source, EMBEDDING, [config.vocab_rows, config.hidden_size], row)?;
    let length = (dot32(&embedding, &embedding) / inputs as f64).sqrt();
    let x: Vec<f64> = embedding.iter().map(|v| f64::from(*v) / if length > 0.0 { length } else { 1.0 }).collect();

    let name = module.base_tensor(config, "weight");
    let shape = [outputs, inputs];
    let count = outputs.min(SHOWN_OUTPUTS);
    let weight = elements(source, &name, shape, 0..count * inputs)?;
    let a_x: Vec<f64> = a.chunks_exact(inputs).map(|row| dot(row.iter().map(|v| f64::from(*v)), &x)).collect();
    let (mut base, mut update, mut merged) = (Vec::new(), Vec::new(), Vec::new());
    for (row, b) in weight.chunks_exact(inputs).zip(b.chunks_exact(rank)) {
        base.push(dot(row.iter().map(|v| f64::from(*v)), &x));
        update.push(scale * dot(b.iter().map(|v| f64::from(*v)), &a_x));
        // The row of the merged weight is made first, as a merge makes it.
        let change = |j: usize| -> f64 { (0..rank).map(|k| f64::from(b[k]) * f64::from(a[k * inputs + j])).sum() };
        merged.push(dot(row.iter().enumerate().map(|(j, w)| f64::from(*w) + scale * change(j)), &x));
    }

    let mut squares = 0.0;
    // A matrix in 4 bits is decoded as a whole.
    let piece = if config.quantized.contains_key(&name) { outputs * inputs } else { PIECE };
    for start in (0..outputs * inputs).step_by(piece) {
        let values = elements(source, &name, shape, start..(start + piece).min(outputs * inputs))?;
        squares += dot32(&values, &values);
    }
    let singular_values = singular_values(a, b, rank, scale);
    Ok(ModuleUpdate {
        modules: shown.iter().map(|at| adapter.modules[*at].own_name()).collect(),
        module: wanted,
        outputs,
        inputs,
        rank,
        alpha: module.alpha,
        scale: module.scale,
        base,
        update,
        merged,
        weight_norm: squares.sqrt(),
        update_norm: singular_values.iter().map(|value| value * value).sum::<f64>().sqrt(),
        singular_values,
    })
}

/// Elements of a flattened matrix in f32.
fn elements(source: &Source, name: &str, shape: [usize; 2], range: Range<usize>) -> Result<Vec<f32>> {
    if source.config.quantized.contains_key(name) {
        return Ok(source.values(name, &shape)?[range].to_vec());
    }
    source.tensors.require(name, &shape)?.read_f32_range(range.start as u64..range.end as u64)
}

fn dot(a: impl Iterator<Item = f64>, b: &[f64]) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

fn dot32(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The singular values of `scale * B A`, descending, of which there are at most `rank` that are not 0. `A` is `[rank, inputs]` and `B` is
/// `[outputs, rank]`.
///
/// With `B = Q R` and `A` transposed `= P S`, where `Q` and `P` have orthonormal columns, they are those of `R` times `S` transposed,
/// a square of the rank. The one-sided Jacobi method finds them: it turns columns until all are orthogonal, and their lengths remain.
pub fn singular_values(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let inputs = a.len() / rank.max(1);
    let of_a = (0..rank).map(|k| a[k * inputs..][..inputs].iter().map(|v| f64::from(*v)).collect()).collect();
    let of_b = (0..rank).map(|k| b.iter().skip(k).step_by(rank).map(|v| f64::from(*v)).collect()).collect();
    let (r, s) = (triangle(of_b), triangle(of_a));
    let entry = |i: usize, j: usize| scale * dot(r[i].iter().copied(), &s[j]);
    let mut columns: Vec<Vec<f64>> = (0..rank).map(|j| (0..rank).map(|i| entry(i, j)).collect()).collect();
    for _ in 0..MOST_SWEEPS {
        if !sweep(&mut columns) {
            break;
        }
    }
    let mut values: Vec<f64> = columns.iter().map(|column| length(column)).collect();
    // By insertion: they are few, and the standard library's sort of another type would make a browser's module larger.
    for end in 1..values.len() {
        let mut at = end;
        while at > 0 && values[at - 1] < values[at] {
            values.swap(at - 1, at);
            at -= 1;
        }
    }
    values
}

fn length(column: &[f64]) -> f64 {
    dot(column.iter().copied(), column).sqrt()
}

/// The rows of the triangle of a QR decomposition, by the modified Gram-Schmidt method. Its rounding errors are as small as those of
/// Householder's for the triangle, whatever becomes of the orthonormal columns.
fn triangle(mut columns: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let rank = columns.len();
    let mut rows = vec![vec![0.0; rank]; rank];
    for k in 0..rank {
        let (done, rest) = columns.split_at_mut(k + 1);
        let own = &mut done[k];
        let long = length(own);
        rows[k][k] = long;
        if long == 0.0 {
            continue;
        }
        own.iter_mut().for_each(|value| *value /= long);
        for (j, other) in rest.iter_mut().enumerate() {
            let along = dot(own.iter().copied(), other);
            rows[k][k + 1 + j] = along;
            other.iter_mut().zip(own.iter()).for_each(|(value, unit)| *value -= along * unit);
        }
    }
    rows
}

/// Makes each pair of columns orthogonal by a rotation. False if all pairs already were.
fn sweep(columns: &mut [Vec<f64>]) -> bool {
    let mut turned = false;
    for j in 1..columns.len() {
        let (before, after) = columns.split_at_mut(j);
        for first in before {
            let second = &mut after[0];
            let (p, q) = (dot(first.iter().copied(), first), dot(second.iter().copied(), second));
            let both = dot(first.iter().copied(), second);
            if both.abs() <= 1e-15 * p.sqrt() * q.sqrt() {
                continue;
            }
            turned = true;
            let zeta = (q - p) / (2.0 * both);
            let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
            let cosine = 1.0 / tangent.hypot(1.0);
            let sine = cosine * tangent;
            for (x, y) in first.iter_mut().zip(second.iter_mut()) {
                (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::adapter_file::save;
    use crate::lora::config::{LoraConfig, LoraInit, TargetModules};
    use crate::lora::factors::init;
    use crate::lora::targets::resolve;

    fn demo() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/demo/model")
    }

    #[test]
    fn a_block_is_its_absmax_times_the_levels_of_its_codes() {
        let block = weight_block(&demo(), None, 3).unwrap();
        assert_eq!((block.weights.len(), block.codes.len(), block.levels.len()), (64, 64, 16));
        assert_eq!((block.matrix.as_str(), block.block), ("model.layers.0.self_attn.q_proj.weight", 3));
        assert_eq!((block.blocks, block.matrices.len()), (128 * 128 / 64, 4 * 7));
        assert_eq!(block.absmax, block.weights.iter().fold(0.0f32, |m, w| m.max(w.abs())));
        for (code, decoded) in block.codes.iter().zip(&block.decoded) {
            assert_eq!(*decoded, block.absmax * block.levels[usize::from(*code)]);
        }
        // Half of the widest gap between two levels.
        assert!(block.error > 0.0 && block.error < 0.16 * f64::from(block.absmax), "{}", block.error);
        assert_eq!(weight_block(&demo(), None, 3 + block.blocks).unwrap(), block);
        let other = weight_block(&demo(), Some("model.layers.3.mlp.down_proj.weight"), 0).unwrap();
        assert_eq!(other.blocks, 128 * 320 / 64);
        weight_block(&demo(), Some("model.norm.weight"), 0).unwrap_err();
        let levels = quantized(Code4::Nf4.spec().values.map(|value| 3.0 * value).to_vec());
        assert_eq!((levels.codes, levels.absmax, levels.error), ((0..16).collect(), 3.0, 0.0));
    }

    #[test]
    fn singular_values_are_those_of_the_product() {
        // B A is diagonal: 2 * 3 and 1 * 5, times the scale.
        let values = singular_values(&[3.0, 0.0, 0.0, 0.0, 5.0, 0.0], &[2.0, 0.0, 0.0, 1.0], 2, 0.5);
        assert!(values.iter().zip([3.0, 2.5]).all(|(value, known)| (value - known).abs() < 1e-12), "{values:?}");
        // Both rows of A are equal, so the product has rank 1: columns (1, 3) and rows (1, 2, 2).
        let values = singular_values(&[1.0, 2.0, 2.0, 1.0, 2.0, 2.0], &[1.0, 0.0, 1.0, 2.0], 2, 1.0);
        assert!((values[0] - 3.0 * 10f64.sqrt()).abs() < 1e-12 && values[1].abs() < 1e-12, "{values:?}");
        assert_eq!(singular_values(&[1.0, 2.0], &[0.0, 0.0, 0.0], 1, 1.0), [0.0]);
        // Their squares add up to those of the product's elements.
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..4 * 9).map(|i| (i as f32).sin()).collect(), (0..7 * 4).map(|i| (0.7 * i as f32).cos()).collect());
        let product = |i: usize, j: usize| -> f64 { (0..4).map(|k| f64::from(b[i * 4 + k] * a[k * 9 + j])).sum() };
        let squares: f64 = (0..7 * 9).map(|at| product(at / 9, at % 9).powi(2)).sum();
        let values = singular_values(&a, &b, 4, 1.0);
        assert!((values.iter().map(|value| value * value).sum::<f64>() - squares).abs() < 1e-4 * squares, "{values:?}");
        assert!(values.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn the_merged_weight_gives_both_outputs_at_once() {
        let source = Source::open(&demo()).unwrap();
        let target_modules = TargetModules::Names(["q_proj", "o_proj", "up_proj"].map(str::to_owned).to_vec());
        let config = LoraConfig { r: 4, lora_alpha: 8.0, target_modules, ..LoraConfig::default() };
        let modules = resolve(&config, &source.config).unwrap();
        let mut tensors = init(&modules, 1, LoraInit::KaimingUniform);
        for (at, module) in tensors.modules.iter_mut().enumerate() {
            module[Factor::B].iter_mut().enumerate().for_each(|(i, b)| *b = ((at + i) as f32).sin() / 10.0);
        }
        let dir = std::env::temp_dir().join(format!("loraine-lesson-{}", std::process::id()));
        save(&dir, &config, &modules, &tensors).unwrap();
        let update = module_update(&demo(), &dir, 1, 65).unwrap();
        assert!(module_update(&demo(), &dir, 8, 65).is_err() && module_update(&demo(), &dir, 0, 768).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
        // Outputs of attention are no module that reads hidden states.
        assert_eq!((update.modules.len(), update.modules[1].as_str()), (8, "model.layers.0.mlp.up_proj"));
        assert_eq!((update.outputs, update.inputs, update.rank, update.scale), (320, 128, 4, 2.0));
        assert_eq!((update.base.len(), update.singular_values.len()), (SHOWN_OUTPUTS, 4));
        for ((base, change), merged) in update.base.iter().zip(&update.update).zip(&update.merged) {
            assert!((base + change - merged).abs() < 1e-9 && *change != 0.0, "{base} {change} {merged}");
        }
        assert!(update.update_norm > 0.0 && update.weight_norm > 1.0);
    }
}
