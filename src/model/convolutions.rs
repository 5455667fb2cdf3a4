//! The layers that have a short convolution in place of attention, by the keys of LFM2's `config.json`.

use super::json_fields::JsonFields;
use crate::Result;

/// Above every published model's, and low enough for a loop of a kernel.
const MAX_TAPS: usize = 64;

/// The short convolutions of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolutions {
    /// Rows that a result reads, its own included, `conv_L_cache`.
    pub taps: usize,
    /// True for each layer that has one in place of attention.
    pub layers: Vec<bool>,
}

impl Convolutions {
    /// Reads the keys of LFM2.
    ///
    /// # Errors
    /// A key that is out of its range or not supported.
    pub(super) fn of_lfm2(fields: &JsonFields, num_layers: usize) -> Result<Self> {
        if fields.flag("conv_bias", false)? {
            return Err(fields.error("conv_bias", "is true: convolutions with biases are not supported"));
        }
        let taps = fields.count("conv_L_cache", MAX_TAPS)?.unwrap_or(3);
        let layers = match fields.texts("layer_types")? {
            Some(kinds) => by_name(fields, &kinds, num_layers)?,
            None => by_number(fields, num_layers)?,
        };
        Ok(Self { taps, layers })
    }
}

fn by_name(fields: &JsonFields, kinds: &[String], num_layers: usize) -> Result<Vec<bool>> {
    if kinds.len() != num_layers {
        let problem = format!("lists {} layers, but num_hidden_layers is {num_layers}", kinds.len());
        return Err(fields.error("layer_types", problem));
    }
    let is_convolution = |kind: &String| match kind.as_str() {
        "conv" => Ok(true),
        "full_attention" => Ok(false),
        other => {
            let problem = format!("`{other}` is not supported; use conv or full_attention");
            Err(fields.error("layer_types", problem))
        }
    };
    kinds.iter().map(is_convolution).collect()
}

/// `full_attn_idxs` of older files: the numbers of the layers with attention. Without it, every layer has attention.
fn by_number(fields: &JsonFields, num_layers: usize) -> Result<Vec<bool>> {
    let key = "full_attn_idxs";
    let Some(value) = fields.value(key) else { return Ok(vec![false; num_layers]) };
    let number = |value: &serde_json::Value| usize::try_from(value.as_u64()?).ok().filter(|at| *at < num_layers);
    let attention: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(number).collect());
    match attention {
        Some(attention) => Ok((0..num_layers).map(|layer| !attention.contains(&layer)).collect()),
        None => Err(fields.error(key, format!("must be a list of layers, each from 0 to {}", num_layers - 1))),
    }
}

/// The inner size of LFM2's feed-forward block: unless `block_auto_adjust_ff_dim` is false, two thirds of what the configuration says,
/// times `block_ffn_dim_multiplier` and rounded up to `block_multiple_of`.
pub(super) fn intermediate_size_of_lfm2(fields: &JsonFields, max: usize) -> Result<usize> {
    let size = match fields.count("block_ff_dim", max)? {
        Some(size) => size,
        None => fields.required_count("intermediate_size", max)?,
    };
    if !fields.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(size);
    }
    let two_thirds = 2 * size / 3;
    let multiplier = match fields.contains("block_ffn_dim_multiplier") {
        true => fields.positive("block_ffn_dim_multiplier")?,
        false => Some(1.0),
    };
    let Some(multiplier) = multiplier else { return Ok(two_thirds.max(1)) };
    let multiple = fields.count("block_multiple_of", max)?.unwrap_or(256);
    // Casts of floats keep to the range of the integer.
    let scaled = (multiplier * two_thirds as f64).clamp(1.0, 2.0 * max as f64) as usize;
    let size = scaled.next_multiple_of(multiple);
    if size > max {
        let problem = format!("makes a feed-forward block of more than the {max} features that are supported");
        return Err(fields.error("block_ffn_dim_multiplier", problem));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Result;
    use crate::model::config::ModelConfig;
    use crate::model::modules::{Norm, Projection};

    fn parse(rest: &str) -> Result<ModelConfig> {
        let text = format!(
            r#"{{"model_type": "lfm2", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, {rest}}}"#
        );
        ModelConfig::from_json(Path::new("config.json"), &text)
    }

    #[test]
    fn layers_are_read_by_name_and_by_number() {
        for layers in [r#""layer_types": ["conv", "full_attention", "conv"]"#, r#""full_attn_idxs": [1]"#] {
            let config = parse(&format!(r#""intermediate_size": 24, {layers}"#)).unwrap();
            assert_eq!([0, 1, 2].map(|layer| config.is_convolution(layer)), [true, false, true]);
            assert_eq!(config.convolutions.as_ref().map(|all| all.taps), Some(3));
            assert!(config.has_projection(0, Projection::ConvIn) && !config.has_projection(0, Projection::Q));
            assert!(!config.has_projection(1, Projection::ConvOut) && config.has_projection(1, Projection::O));
            assert!(config.layer_has_norm(1, Norm::Query) && !config.layer_has_norm(2, Norm::Key));
            assert!(config.tie_word_embeddings);
        }
        let attention = parse(r#""intermediate_size": 24"#).unwrap();
        assert!(attention.convolutions.is_none() && attention.has_projection(0, Projection::Q));
    }

    #[test]
    fn the_inner_size_is_rounded_as_in_the_published_models() {
        let size = |rest: &str| parse(rest).unwrap().intermediate_size;
        assert_eq!(size(r#""block_ff_dim": 6656, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256"#), 4608);
        assert_eq!(size(r#""intermediate_size": 12288"#), 8192);
        assert_eq!(size(r#""intermediate_size": 100, "block_ffn_dim_multiplier": null"#), 66);
        assert_eq!(size(r#""intermediate_size": 100, "block_auto_adjust_ff_dim": false"#), 100);
        assert_eq!(size(r#""intermediate_size": 7, "block_ff_dim": 96, "block_multiple_of": 10"#), 70);
    }

    #[test]
    fn bad_keys_are_named() {
        for (rest, says) in [
            (r#""layer_types": ["conv", "mamba", "conv"]"#, "`mamba` is not supported"),
            (r#""layer_types": ["conv"]"#, "lists 1 layers"),
            (r#""full_attn_idxs": [3]"#, "from 0 to 2"),
            (r#""conv_L_cache": 0"#, "whole number in 1..="),
            (r#""conv_bias": true"#, "biases are not supported"),
            (r#""block_ffn_dim_multiplier": 1e9"#, "`block_ffn_dim_multiplier`"),
        ] {
            let problem = parse(&format!(r#""intermediate_size": 24, {rest}"#)).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
