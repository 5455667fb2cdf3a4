//! A model directory as its files describe it, checked before anything is allocated.

use super::config::ModelConfig;
use super::packed::PackedWeight;
use super::tensors::tensors;
use super::weight_files::{WeightDtype, WeightFiles};
use crate::Result;
use crate::quant::format::Float;

pub fn float_of(dtype: WeightDtype) -> Float {
    match dtype {
        WeightDtype::F32 => Float::F32,
        WeightDtype::F16 => Float::F16,
        WeightDtype::Bf16 => Float::Bf16,
    }
}

/// The directory's weights, checked against the network's shapes before anything is allocated.
///
/// # Errors
/// A missing tensor, one whose shape disagrees with `config.json`, or one of a layer for which it has no place.
pub fn check_shapes(files: &WeightFiles, config: &ModelConfig) -> Result<()> {
    let expected = tensors(config);
    for spec in &expected {
        match (config.quantization.filter(|_| spec.is_projection()), &spec.shape[..]) {
            (Some(stored), [rows, cols]) => {
                PackedWeight::find(files, &spec.name, [*rows, *cols], stored)?;
            }
            _ => {
                files.require(&spec.name, &spec.shape)?;
            }
        }
    }
    files.refuse_other_layer_tensors(&expected)
}
