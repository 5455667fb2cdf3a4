//! The tensors of a GGUF file under the names, in the order of rows and with the values that transformers has.

use std::path::Path;

use super::family::Family;
use super::gguf_blocks::GgmlType;
use super::gguf_config::DecoderShape;
use super::gguf_file::{GgufFile, GgufTensor};
use super::listing::{Blocks, Entry, Listing, TensorInfo};
use super::modules::{self, Fused, Norm, Projection, in_layer};
use crate::quant::format::Float;
use crate::{Error, Result};

/// Weights of a layer by their names below `blk.N.`.
pub(crate) const PROJECTIONS: [(&str, Projection); 9] = [
    ("attn_q", Projection::Q),
    ("attn_k", Projection::K),
    ("attn_v", Projection::V),
    ("attn_output", Projection::O),
    ("ffn_gate", Projection::Gate),
    ("ffn_up", Projection::Up),
    ("ffn_down", Projection::Down),
    ("shortconv.in_proj", Projection::ConvIn),
    ("shortconv.out_proj", Projection::ConvOut),
];
/// The weights of a layer's short convolution by their name below `blk.N.`; transformers has one dimension more.
pub(crate) const CONVOLUTION: &str = "shortconv.conv";
/// LFM2's name of the norm after the last layer.
pub(crate) const NORM_OF_LFM2: &str = "token_embd_norm";
/// Norms of a layer by their names below `blk.N.`.
pub(crate) const NORMS: [(&str, Norm); 6] = [
    ("attn_norm", Norm::Input),
    ("post_attention_norm", Norm::AttentionOutput),
    ("ffn_norm", Norm::FeedForwardInput),
    ("post_ffw_norm", Norm::FeedForwardOutput),
    ("attn_q_norm", Norm::Query),
    ("attn_k_norm", Norm::Key),
];
/// Queries, keys and values as one tensor.
const FUSED_ATTENTION: &str = "attn_qkv";

/// The tensors of a file under the names of transformers.
///
/// # Errors
/// As [`GgufFile::open`] and [`DecoderShape::of`], or a tensor that does not consist of whole heads.
pub(super) fn list(path: &Path) -> Result<Listing> {
    let file = GgufFile::open(path)?;
    let shape = DecoderShape::of(&file)?;
    let mut listing = Listing { path: path.to_owned(), entries: Default::default() };
    for tensor in &file.tensors {
        for info in tensors_of(tensor, &shape)? {
            listing.entries.insert(info.name.clone(), Entry::Float(info));
        }
    }
    Ok(listing)
}

/// The linear layer that holds a projection with others.
fn fused_layer(family: &Family, part: Projection) -> Option<&'static Fused> {
    family.fused.iter().find(|fused| fused.parts.contains(&part))
}

/// The name below the layer, or the whole name outside of layers, by which transformers has a module of the file; None for tensors that
/// are no part of the network, such as the frequencies of rope.
fn module(name: &str, family: &Family) -> Option<String> {
    let of_layer = |rest: &str| -> Option<String> {
        let (layer, name) = rest.split_once('.')?;
        let layer = layer.parse().ok()?;
        let fused = |part| fused_layer(family, part).map(|fused| fused.path);
        let projection = PROJECTIONS.into_iter().find(|(own, _)| *own == name).map(|(_, projection)| projection);
        let norm = NORMS.into_iter().find(|(own, _)| *own == name).map(|(_, norm)| norm);
        let norm = norm.and_then(|norm| family.norms.iter().find(|(place, _)| *place == norm));
        let path = match (name, projection, norm) {
            (CONVOLUTION, ..) => modules::CONVOLUTION,
            (FUSED_ATTENTION, ..) => fused(Projection::Q).unwrap_or(FUSED_ATTENTION),
            ("ffn_up", ..) => fused(Projection::Up).unwrap_or(Projection::Up.module()),
            (_, Some(projection), _) => projection.module(),
            (_, _, Some((_, path))) => path,
            // Listed by its own name, so that the check of the tensors names it.
            _ => name,
        };
        Some(in_layer(layer, path))
    };
    match name {
        "token_embd" => Some(modules::EMBEDDING.to_owned()),
        "output_norm" => Some(family.final_norm.to_owned()),
        NORM_OF_LFM2 if family.convolutions => Some(family.final_norm.to_owned()),
        "output" => Some(modules::HEAD.to_owned()),
        other => of_layer(other.strip_prefix("blk.")?),
    }
}

/// A tensor of the file as the tensors that transformers has.
fn tensors_of(tensor: &GgufTensor, shape: &DecoderShape) -> Result<Vec<TensorInfo>> {
    let Some((stem, suffix)) = tensor.name.rsplit_once('.') else { return Ok(Vec::new()) };
    let Some(module) = module(stem, shape.family) else { return Ok(Vec::new()) };
    let below = stem.rsplit_once('.').map_or(stem, |(_, below)| below);
    if tensor.shape.len() < 2 && !tensor.kind.is_float() {
        let problem = format!("is a vector of the type {}; vectors are in F32, F16 or BF16", tensor.kind.name());
        return Err(Error::field(&tensor.path, &tensor.name, problem));
    }
    if below == FUSED_ATTENTION && fused_layer(shape.family, Projection::Q).is_none() {
        return fused_attention(tensor, &module, suffix, shape);
    }
    let head = match below {
        "attn_q" | "attn_k" if shape.architecture.permuted => Some(shape.head_dim),
        _ => None,
    };
    // Gemma's files hold the gains as they are multiplied, those of transformers one less.
    let offset = if below.ends_with("norm") { -shape.family.gain_offset } else { 0.0 };
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let mut info = part(tensor, format!("{module}.{suffix}"), 0..rows, head, offset)?;
    if module.ends_with(modules::CONVOLUTION) && info.shape.len() == 2 {
        info.shape.insert(1, 1);
    }
    Ok(vec![info])
}

/// Queries, keys and values of one tensor, in a family that has them apart.
fn fused_attention(tensor: &GgufTensor, module: &str, suffix: &str, shape: &DecoderShape) -> Result<Vec<TensorInfo>> {
    let layer = module.strip_suffix(FUSED_ATTENTION).unwrap_or(module);
    let mut first = 0;
    let mut infos = Vec::new();
    for projection in Projection::OF_ATTENTION_INPUT {
        let heads = if projection == Projection::Q { shape.heads } else { shape.kv_heads };
        let rows = shape.head_dim.saturating_mul(heads);
        if rows.saturating_add(first) > tensor.shape.first().copied().unwrap_or(0) {
            let problem = format!("has shape {:?}, too few rows for queries, keys and values", tensor.shape);
            return Err(Error::field(&tensor.path, &tensor.name, problem));
        }
        let head = (shape.architecture.permuted && projection != Projection::V).then_some(shape.head_dim);
        let name = format!("{layer}{}.{suffix}", projection.module());
        infos.push(part(tensor, name, first..first + rows, head, 0.0)?);
        first += rows;
    }
    Ok(infos)
}

/// The rows of a tensor, in order within heads of `head` rows, with `offset` added to every value.
fn part(
    tensor: &GgufTensor,
    name: String,
    rows: std::ops::Range<usize>,
    head: Option<usize>,
    offset: f32,
) -> Result<TensorInfo> {
    let dtype = match tensor.kind {
        GgmlType::F16 if offset == 0.0 => Float::F16,
        GgmlType::Bf16 if offset == 0.0 => Float::Bf16,
        _ => Float::F32,
    };
    let mut shape = tensor.shape.clone();
    let count = rows.len();
    if let Some(first) = shape.first_mut() {
        *first = count;
    }
    // The rows of a vector have one value each where they change places.
    let of_row = if shape.len() == 1 && head.is_none() && count == tensor.shape[0] {
        count
    } else {
        shape.iter().skip(1).product()
    };
    let byte_len = shape.iter().product::<usize>() as u64 * dtype.bytes();
    if head.is_some_and(|head| !count.is_multiple_of(head) || !head.is_multiple_of(2)) {
        let problem = format!("has shape {:?}, but must have whole heads of {} rows", tensor.shape, head.unwrap_or(0));
        return Err(Error::field(&tensor.path, &tensor.name, problem));
    }
    let blocks = Blocks {
        kind: tensor.kind,
        columns: of_row as u64,
        first_row: rows.start as u64,
        head: head.map(|head| head as u64),
        offset,
        planes: None,
    };
    let plain = blocks.head.is_none() && blocks.first_row == 0 && tensor.kind.is_float() && offset == 0.0;
    let (path, file_offset) = (tensor.path.clone(), tensor.offset);
    Ok(TensorInfo {
        name,
        dtype,
        shape,
        path,
        file_offset,
        byte_len,
        blocks: (!plain).then_some(blocks),
        strides: None,
    })
}
