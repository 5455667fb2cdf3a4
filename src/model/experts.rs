//! Mixtures of experts in place of feed-forward blocks, as `config.json` describes them.

use super::family::ExpertKeys;
use super::json_fields::JsonFields;
use crate::Result;
use crate::ops::experts::{Choice, MAX_EXPERTS, Scores};

/// The experts of a model, which all of its layers with experts have alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Number of experts in a layer, `num_experts`.
    pub count: usize,
    /// Experts that each token goes through, `num_experts_per_tok`.
    pub top: usize,
    /// Output features of an expert's gate and up, and input features of its down, `moe_intermediate_size`.
    pub intermediate_size: usize,
    /// The scores of experts, as a function of the router's logits.
    pub scores: Scores,
    /// True if the weights of a token's experts are divided by their sum, `norm_topk_prob`.
    pub normalized: bool,
    /// The factor on the weights of a token's experts, `routed_scaling_factor`.
    pub scale: f32,
    /// True if the files have a bias of each expert for the choice alone, `use_expert_bias`.
    pub biased: bool,
    /// True if the router and the projections of experts have biases.
    pub with_biases: bool,
    /// For each layer, true if it has experts.
    pub layers: Vec<bool>,
}

impl Experts {
    /// Reads the keys of a family. Keys that are absent have the values of its configuration class.
    ///
    /// # Errors
    /// A key that is out of its range.
    pub(super) fn of_fields(
        fields: &JsonFields,
        keys: ExpertKeys,
        num_layers: usize,
        max_dimension: usize,
    ) -> Result<Self> {
        match keys {
            ExpertKeys::Qwen => Self::of_qwen(fields, num_layers, max_dimension),
            ExpertKeys::Lfm2 => Self::of_lfm2(fields, num_layers, max_dimension),
            ExpertKeys::GptOss => Self::of_gpt_oss(fields, num_layers, max_dimension),
        }
    }

    fn of_qwen(fields: &JsonFields, num_layers: usize, max_dimension: usize) -> Result<Self> {
        // The second name is that of transformers 5.
        let names = ["num_experts", "num_local_experts"];
        let key = names.into_iter().find(|key| fields.value(key).is_some()).unwrap_or(names[0]);
        let count = fields.count(key, MAX_EXPERTS)?.unwrap_or(128);
        let top = fields.count("num_experts_per_tok", count)?.unwrap_or(8.min(count));
        let step = fields.count("decoder_sparse_step", usize::MAX)?.unwrap_or(1);
        let dense = dense_layers(fields)?;
        let has_experts = |layer: usize| !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        Ok(Self {
            count,
            top,
            intermediate_size: fields.count("moe_intermediate_size", max_dimension)?.unwrap_or(768),
            scores: Scores::Softmax,
            normalized: fields.flag("norm_topk_prob", false)?,
            scale: 1.0,
            biased: false,
            with_biases: false,
            layers: (0..num_layers).map(has_experts).collect(),
        })
    }

    fn of_lfm2(fields: &JsonFields, num_layers: usize, max_dimension: usize) -> Result<Self> {
        let count = fields.count("num_experts", MAX_EXPERTS)?.unwrap_or(32);
        let dense = match fields.value("num_dense_layers").map(|value| (value, value.as_u64())) {
            None => 2,
            Some((_, Some(layers))) => usize::try_from(layers).unwrap_or(usize::MAX),
            Some((value, None)) => {
                let problem = format!("is {value}, but must be a whole number of at least 0");
                return Err(fields.error("num_dense_layers", problem));
            }
        };
        Ok(Self {
            count,
            top: fields.count("num_experts_per_tok", count)?.unwrap_or(4.min(count)),
            intermediate_size: fields.count("moe_intermediate_size", max_dimension)?.unwrap_or(1792),
            scores: Scores::Sigmoid,
            normalized: fields.flag("norm_topk_prob", true)?,
            scale: fields.positive("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            biased: fields.flag("use_expert_bias", true)?,
            with_biases: false,
            layers: (0..num_layers).map(|layer| layer >= dense).collect(),
        })
    }

    fn of_gpt_oss(fields: &JsonFields, num_layers: usize, max_dimension: usize) -> Result<Self> {
        check_gpt_oss(fields)?;
        let names = ["num_local_experts", "num_experts"];
        let key = names.into_iter().find(|key| fields.value(key).is_some()).unwrap_or(names[0]);
        let count = fields.count(key, MAX_EXPERTS)?.unwrap_or(128);
        Ok(Self {
            count,
            top: fields.count("num_experts_per_tok", count)?.unwrap_or(4.min(count)),
            intermediate_size: fields.required_count("intermediate_size", max_dimension)?,
            // The softmax over the chosen experts is that over all, divided by the sum of the chosen.
            scores: Scores::Softmax,
            normalized: true,
            scale: 1.0,
            biased: false,
            with_biases: true,
            layers: vec![true; num_layers],
        })
    }

    /// The choice of a layer's experts, as the operations take it.
    pub fn choice(&self) -> Choice {
        let Self { scores, normalized, scale, .. } = *self;
        Choice { experts: self.count as u32, top: self.top as u32, scores, normalized, scale }
    }
}

/// Refuses keys with which the formulas would be others than those of the published models.
fn check_gpt_oss(fields: &JsonFields) -> Result<()> {
    for (key, only) in [("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)] {
        if let Some(value) = fields.positive(key)?.filter(|value| *value != only) {
            return Err(fields.error(key, format!("is {value}, but only {only} is supported")));
        }
    }
    if !fields.flag("attention_bias", true)? {
        return Err(fields.error("attention_bias", "is false, but only models with biases are supported"));
    }
    if !["rope_scaling", "rope_parameters"].into_iter().any(|key| fields.value(key).is_some()) {
        let problem = "is missing; gpt-oss has it with rope_type yarn and its factor";
        return Err(fields.error("rope_scaling", problem));
    }
    Ok(())
}

/// `mlp_only_layers`, the layers with a feed-forward block in any case.
fn dense_layers(fields: &JsonFields) -> Result<Vec<usize>> {
    let key = "mlp_only_layers";
    let Some(value) = fields.value(key) else { return Ok(Vec::new()) };
    let listed = value.as_array().and_then(|list| list.iter().map(|v| v.as_u64().map(|n| n as usize)).collect());
    listed.ok_or_else(|| fields.error(key, "must be a list of layers' numbers, counted from 0"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::model::config::ModelConfig;
    use crate::model::modules::Projection;
    use crate::model::tensors;
    use crate::ops::experts::Scores;

    fn config(more: &str) -> crate::Result<ModelConfig> {
        let text = format!(
            r#"{{"model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "num_experts": 6, "moe_intermediate_size": 12, "num_experts_per_tok": 2{more}}}"#
        );
        ModelConfig::from_json(Path::new("config.json"), &text)
    }

    #[test]
    fn the_layers_with_experts_are_those_of_transformers() {
        let layers = |more: &str| config(more).unwrap().experts.unwrap().layers;
        assert_eq!(layers(""), [true; 4]);
        assert_eq!(layers(r#", "mlp_only_layers": [0, 2]"#), [false, true, false, true]);
        assert_eq!(layers(r#", "decoder_sparse_step": 2"#), [false, true, false, true]);
        assert_eq!(layers(r#", "decoder_sparse_step": 2, "mlp_only_layers": [3]"#), [false, true, false, false]);
    }

    #[test]
    fn the_router_of_lfm2_is_read() {
        let with = |more: &str| {
            let text = format!(
                r#"{{"model_type": "lfm2_moe", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
                "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 6{more}}}"#
            );
            ModelConfig::from_json(Path::new("config.json"), &text)
        };
        let default = with("").unwrap();
        let experts = default.experts.clone().unwrap();
        assert_eq!(
            (experts.top, experts.intermediate_size, &experts.layers[..]),
            (4, 1792, &[false, false, true, true][..])
        );
        assert!(experts.scores == Scores::Sigmoid && experts.normalized && experts.biased && experts.scale == 1.0);
        assert_eq!(default.intermediate_size, 24);
        assert!(tensors::tensors(&default).iter().any(|tensor| tensor.name == "model.layers.3.mlp.expert_bias"));
        let other = with(
            r#", "num_dense_layers": 0, "use_expert_bias": false, "norm_topk_prob": false, "routed_scaling_factor": 2.5"#,
        );
        let experts = other.unwrap().experts.unwrap();
        assert!(!experts.normalized && !experts.biased && experts.scale == 2.5 && experts.layers == [true; 4]);
        let message = with(r#", "num_dense_layers": -1"#).unwrap_err().to_string();
        assert!(message.contains("`num_dense_layers`: is -1"), "{message}");
    }

    #[test]
    fn other_formulas_than_those_of_gpt_oss_are_refused() {
        let with = |more: &str| {
            let text = format!(
                r#"{{"model_type": "gpt_oss", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32,
                "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8{more}}}"#
            );
            ModelConfig::from_json(Path::new("config.json"), &text)
        };
        let rope = r#", "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": false}"#;
        let config = with(rope).unwrap();
        assert_eq!(config.sliding_windows, [Some(128), None, Some(128)]);
        assert_eq!(config.experts.unwrap().count, 128);
        for (more, says) in [
            (r#", "swiglu_limit": 5.0"#, "`swiglu_limit`: is 5, but only 7"),
            (r#", "swiglu_alpha": 1.0"#, "`swiglu_alpha`: is 1, but only 1.702"),
            (r#", "attention_bias": false"#, "`attention_bias`: is false"),
        ] {
            let message = with(&format!("{rope}{more}")).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
        let message = with("").unwrap_err().to_string();
        assert!(message.contains("`rope_scaling`: is missing"), "{message}");
    }

    #[test]
    fn tensors_have_the_names_of_the_files() {
        let config = config(r#", "mlp_only_layers": [0]"#).unwrap();
        assert!(config.has_projection(0, Projection::Gate) && !config.has_projection(1, Projection::Gate));
        assert!(config.has_projection(1, Projection::Q));
        let all = tensors::tensors(&config);
        let shape = |name: &str| all.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.shape.clone());
        assert_eq!(shape("model.layers.0.mlp.gate_proj.weight"), Some(vec![24, 16]));
        assert_eq!(shape("model.layers.1.mlp.gate_proj.weight"), None);
        assert_eq!(shape("model.layers.1.mlp.gate.weight"), Some(vec![6, 16]));
        assert_eq!(shape("model.layers.3.mlp.experts.5.up_proj.weight"), Some(vec![12, 16]));
        assert_eq!(shape("model.layers.3.mlp.experts.5.down_proj.weight"), Some(vec![16, 12]));
        assert_eq!(shape("model.layers.3.mlp.experts.6.down_proj.weight"), None);
    }

    #[test]
    fn wrong_values_name_their_key() {
        let message = |more: &str| config(more).unwrap_err().to_string();
        assert!(message(r#", "mlp_only_layers": "all""#).contains("`mlp_only_layers`: must be a list"));
        assert!(message(r#", "decoder_sparse_step": 0"#).contains("`decoder_sparse_step`: is 0"));
        assert!(message(r#", "norm_topk_prob": 1"#).contains("`norm_topk_prob`: is 1"));
        assert!(message(r#", "use_sliding_window": true"#).contains("`use_sliding_window`"));
    }

    #[test]
    fn a_token_cannot_go_through_more_experts_than_there_are() {
        let text = r#"{"model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 4}"#;
        let message = ModelConfig::from_json(Path::new("config.json"), text).unwrap_err().to_string();
        assert!(message.contains("`num_experts_per_tok`: is 4, but must be a whole number in 1..=3"), "{message}");
    }
}
