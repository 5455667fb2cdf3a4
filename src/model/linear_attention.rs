//! The layers that have a gated delta rule in place of attention, by the keys of Qwen3.5's `config.json`: its `layer_types` call them
//! `linear_attention`.

use super::json_fields::JsonFields;
use super::modules::LinearPart;
use crate::Result;

/// Above every published model's, and low enough for a loop of a kernel.
const MAX_TAPS: usize = 64;
/// The most features of a head, for which a workgroup of the kernels has room.
const MAX_HEAD_DIM: usize = 128;

/// The gated delta rule of a model. Each key head serves as many value heads, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearAttention {
    /// Rows that the convolution before the rule reads, its own included, `linear_conv_kernel_dim`.
    pub taps: usize,
    /// Number of heads of queries and keys, `linear_num_key_heads`.
    pub key_heads: usize,
    /// Number of heads of values, `linear_num_value_heads`, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Features of a head of queries or keys, `linear_key_head_dim`, a multiple of 4.
    pub key_head_dim: usize,
    /// Features of a head of values, `linear_value_head_dim`, a multiple of 4.
    pub value_head_dim: usize,
    /// True for each layer that has the rule in place of attention.
    pub layers: Vec<bool>,
}

impl LinearAttention {
    /// Reads the keys of Qwen3.5.
    ///
    /// # Errors
    /// A key that is out of its range or not supported.
    pub(super) fn of_qwen(fields: &JsonFields, num_layers: usize, max: usize) -> Result<Self> {
        let head_dim = |key: &str| -> Result<usize> {
            let size = fields.count(key, MAX_HEAD_DIM)?.unwrap_or(128);
            match size.is_multiple_of(4) {
                true => Ok(size),
                false => Err(fields.error(key, format!("is {size}, but must be a multiple of 4"))),
            }
        };
        let most_heads = max / (4 * MAX_HEAD_DIM);
        let key_heads = fields.count("linear_num_key_heads", most_heads)?.unwrap_or(16);
        let value_heads = fields.count("linear_num_value_heads", most_heads)?.unwrap_or(32);
        if !value_heads.is_multiple_of(key_heads) {
            let problem = format!("is {key_heads}, which does not divide linear_num_value_heads, {value_heads}");
            return Err(fields.error("linear_num_key_heads", problem));
        }
        let layers = match fields.texts("layer_types")? {
            Some(kinds) => by_name(fields, &kinds, num_layers)?,
            None => {
                let interval = fields.count("full_attention_interval", max)?.unwrap_or(4);
                (0..num_layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect()
            }
        };
        Ok(Self {
            taps: fields.count("linear_conv_kernel_dim", MAX_TAPS)?.unwrap_or(4),
            key_heads,
            value_heads,
            key_head_dim: head_dim("linear_key_head_dim")?,
            value_head_dim: head_dim("linear_value_head_dim")?,
            layers,
        })
    }

    /// Features of all queries, and of all keys.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.key_head_dim
    }

    /// Features of all values.
    pub fn value_width(&self) -> usize {
        self.value_heads * self.value_head_dim
    }

    /// Features of queries, keys and values together, which the convolution reads.
    pub fn conv_width(&self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// The shape of a part in the files.
    pub fn part_shape(&self, part: LinearPart) -> Vec<usize> {
        match part {
            LinearPart::Convolution => vec![self.conv_width(), 1, self.taps],
            LinearPart::DecayLog | LinearPart::StepBias => vec![self.value_heads],
            LinearPart::Norm => vec![self.value_head_dim],
        }
    }
}

fn by_name(fields: &JsonFields, kinds: &[String], num_layers: usize) -> Result<Vec<bool>> {
    if kinds.len() != num_layers {
        let problem = format!("lists {} layers, but num_hidden_layers is {num_layers}", kinds.len());
        return Err(fields.error("layer_types", problem));
    }
    let is_linear = |kind: &String| match kind.as_str() {
        "linear_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => {
            let problem = format!("`{other}` is not supported; use linear_attention or full_attention");
            Err(fields.error("layer_types", problem))
        }
    };
    kinds.iter().map(is_linear).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Result;
    use crate::model::config::ModelConfig;
    use crate::model::modules::{Norm, Projection};
    use crate::model::tensors::{modules_without_projections, tensors};

    fn parse(rest: &str) -> Result<ModelConfig> {
        let text = format!(
            r#"{{"model_type": "qwen3_5_text", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8 {rest}}}"#
        );
        ModelConfig::from_json(Path::new("config.json"), &text)
    }

    #[test]
    fn layers_are_read_by_name_and_by_interval() {
        let linear = |rest: &str| {
            let config = parse(rest).unwrap();
            [0, 1, 2, 3].map(|layer| config.is_linear_attention(layer))
        };
        assert_eq!(linear(""), [true, true, true, false]);
        assert_eq!(linear(r#", "full_attention_interval": 2"#), [true, false, true, false]);
        let kinds = r#", "layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]"#;
        assert_eq!(linear(kinds), [false, true, false, false]);
        assert!(parse(r#", "full_attention_interval": 1"#).unwrap().linear_attention.is_none());
    }

    #[test]
    fn layers_have_the_tensors_of_their_kind() {
        let config = parse(
            r#", "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8,
            "linear_value_head_dim": 12, "linear_conv_kernel_dim": 3, "tie_word_embeddings": true"#,
        )
        .unwrap();
        assert_eq!(config.projection_shape(Projection::LinearQkv), (104, 16));
        assert_eq!(config.projection_shape(Projection::LinearOut), (16, 72));
        // A gate beside each query.
        assert_eq!(config.projection_shape(Projection::Q), (64, 16));
        assert_eq!(config.projection_shape(Projection::O), (16, 32));
        assert!(config.has_projection(0, Projection::LinearGate) && !config.has_projection(0, Projection::K));
        assert!(config.has_projection(3, Projection::V) && !config.has_projection(3, Projection::LinearBeta));
        assert!(config.layer_has_norm(3, Norm::Query) && !config.layer_has_norm(2, Norm::Query));
        assert_eq!(config.ropes[0].rotated, 2);
        let shapes = |layer: usize| -> Vec<(String, Vec<usize>)> {
            let prefix = format!("model.layers.{layer}.");
            let all = tensors(&config).into_iter();
            all.filter_map(|spec| Some((spec.name.strip_prefix(&prefix)?.to_owned(), spec.shape))).collect()
        };
        for (name, shape) in [
            ("linear_attn.conv1d.weight", vec![104, 1, 3]),
            ("linear_attn.A_log", vec![6]),
            ("linear_attn.dt_bias", vec![6]),
            ("linear_attn.norm.weight", vec![12]),
            ("linear_attn.in_proj_a.weight", vec![6, 16]),
            ("linear_attn.in_proj_z.weight", vec![72, 16]),
        ] {
            assert!(shapes(0).contains(&(name.to_owned(), shape)), "{name}");
        }
        assert_eq!((shapes(0).len(), shapes(3).len()), (14, 11));
        let others = modules_without_projections(&config);
        for name in ["0.linear_attn.conv1d", "0.linear_attn", "0.linear_attn.norm", "3.self_attn", "3.self_attn.q_norm"]
        {
            assert!(others.contains(&format!("model.layers.{name}")), "{name}");
        }
    }

    #[test]
    fn bad_keys_are_named() {
        for (rest, says) in [
            (r#", "layer_types": ["linear_attention", "mamba", "full_attention", "full_attention"]"#, "`mamba` is not"),
            (r#", "layer_types": ["linear_attention"]"#, "lists 1 layers"),
            (r#", "linear_num_key_heads": 3"#, "does not divide linear_num_value_heads"),
            (r#", "linear_key_head_dim": 6"#, "multiple of 4"),
            (r#", "linear_value_head_dim": 256"#, "whole number in 1..="),
            (r#", "linear_conv_kernel_dim": 0"#, "whole number in 1..="),
            (r#", "hidden_act": "gelu_pytorch_tanh""#, "`hidden_act`"),
        ] {
            let problem = parse(rest).unwrap_err().to_string();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
