//! The keys of a GGUF file that describe a decoder, in the types that llama.cpp's loader asks for, and the tensors that stand for keys.

use std::f64::consts::PI;
use std::path::Path;

use super::gguf_writer::Meta;
use crate::model::config::ModelConfig;
use crate::model::family::AttentionScale;
use crate::model::gguf_config::Architecture;
use crate::model::rope::{RopeConfig, RopeScaling};
use crate::{Error, Result};

/// The keys of a model, and f32 vectors that are stored as tensors.
pub(super) struct ModelKeys {
    pub keys: Vec<(String, Meta)>,
    pub vectors: Vec<(String, Vec<f32>)>,
}

/// Collects the keys of one architecture.
struct Keys<'a> {
    model: &'a Path,
    architecture: Architecture,
    config: &'a ModelConfig,
    keys: Vec<(String, Meta)>,
    vectors: Vec<(String, Vec<f32>)>,
}

impl Keys<'_> {
    fn put(&mut self, key: &str, value: Meta) {
        self.keys.push((format!("{}.{key}", self.architecture.name), value));
    }

    fn number(&mut self, key: &str, value: usize) {
        self.put(key, Meta::U32(value as u32));
    }

    fn float(&mut self, key: &str, value: f64) {
        self.put(key, Meta::F32(value as f32));
    }

    fn refused(&self, what: &str) -> Error {
        Error::file(
            self.model,
            format!("has {what}, which its GGUF architecture, {}, has no key for", self.architecture.name),
        )
    }

    /// Refuses what llama.cpp's graph of the architecture does not have.
    fn check_parts(&self) -> Result<()> {
        let (config, name) = (self.config, self.architecture.name);
        if config.activation != config.family.activation {
            return Err(self.refused("another activation than its family's"));
        }
        let allowed = |names: &[&str]| names.contains(&name);
        let biases = [
            (
                config.qkv_bias,
                allowed(&["llama", "granite", "ernie4_5", "qwen2", "glm4"]),
                "biases on queries, keys and values",
            ),
            (config.o_bias, allowed(&["llama", "granite", "ernie4_5"]), "a bias on the output of attention"),
            (config.mlp_bias, allowed(&["llama", "granite"]), "biases in the feed-forward block"),
        ];
        match biases.into_iter().find(|(there, allowed, _)| *there && !allowed) {
            Some((.., what)) => Err(self.refused(what)),
            None => Ok(()),
        }
    }

    /// Sizes and norms.
    fn sizes(&mut self) {
        let config = self.config;
        // llama.cpp has no windows for Mistral, whose results so hold up to the window.
        let window = config.sliding_windows.iter().flatten().min().copied();
        let window = window.filter(|_| ["llama", "mistral3"].contains(&self.architecture.name));
        self.number("context_length", config.max_position_embeddings.min(window.unwrap_or(usize::MAX)));
        self.number("embedding_length", config.hidden_size);
        self.number("block_count", config.num_layers);
        self.number("feed_forward_length", config.intermediate_size);
        self.number("vocab_size", config.vocab_size);
        self.number("attention.head_count", config.num_heads);
        match &config.convolutions {
            Some(convolutions) => {
                let heads = |convolves: &bool| if *convolves { 0 } else { config.num_kv_heads as i32 };
                let heads = convolutions.layers.iter().map(heads).collect();
                self.put("attention.head_count_kv", Meta::I32s(heads));
                self.number("shortconv.l_cache", convolutions.taps);
            }
            None => self.number("attention.head_count_kv", config.num_kv_heads),
        }
        self.number("attention.key_length", config.head_dim);
        self.number("attention.value_length", config.head_dim);
        self.float("attention.layer_norm_rms_epsilon", f64::from(config.rms_norm_eps));
    }

    /// Factors and bounds.
    fn factors(&mut self) -> Result<()> {
        let config = self.config;
        if let Some(cap) = config.attention_softcap {
            self.float("attn_logit_softcapping", f64::from(cap));
        }
        if let Some(cap) = config.final_softcap {
            self.float("final_logit_softcapping", f64::from(cap));
        }
        if self.architecture.name == "granite" {
            self.float("embedding_scale", f64::from(config.embedding_scale));
            self.float("residual_scale", f64::from(config.residual_scale));
            self.float("attention.scale", f64::from(config.attention_scale));
            self.float("logit_scale", 1.0 / f64::from(config.logit_scale));
        }
        // llama.cpp takes the size of a head, or for the 27B models of Gemma, which it tells by their layers, the mean of the heads.
        if let AttentionScale::InverseSqrt { .. } = config.family.attention_scale {
            let large = config.num_layers == if self.architecture.name == "gemma2" { 46 } else { 62 };
            let size = if large { config.hidden_size / config.num_heads } else { config.head_dim };
            if (config.attention_scale * (size as f32).sqrt() - 1.0).abs() > 1e-5 {
                return Err(self.refused("a query_pre_attn_scalar other than the size of a head"));
            }
        }
        Ok(())
    }

    /// Windows of attention.
    fn windows(&mut self) -> Result<()> {
        let config = self.config;
        let Some(window) = config.sliding_windows.iter().flatten().next().copied() else { return Ok(()) };
        let windowed: Vec<bool> = config.sliding_windows.iter().map(Option::is_some).collect();
        let every =
            |pattern: usize| windowed.iter().enumerate().all(|(i, has)| *has != (i + 1).is_multiple_of(pattern));
        match self.architecture.name {
            "gemma2" if every(2) => {}
            "gemma3" if every(6) => {}
            "olmo2" => self.put("attention.sliding_window_pattern", Meta::Bools(windowed)),
            // They limit the context.
            "llama" | "mistral3" => return Ok(()),
            "phi3" if windowed.iter().all(|has| *has) => {}
            _ => return Err(self.refused("windows of attention in other layers than its family's")),
        }
        self.number("attention.sliding_window", window);
        Ok(())
    }

    /// The rotary position embedding.
    fn rope(&mut self) -> Result<()> {
        let config = self.config;
        let of = |windowed: bool| {
            let mut layers = config.layer_ropes.iter().zip(&config.sliding_windows);
            let place = layers.find(|(rope, window)| rope.is_some() && window.is_some() == windowed);
            place.and_then(|(rope, _)| config.ropes.get((*rope)?))
        };
        let Some(rope) = of(false).or(of(true)).cloned() else { return Ok(()) };
        self.number("rope.dimension_count", rope.rotated);
        let local = of(true).filter(|local| self.architecture.name == "gemma3" || **local != rope);
        if let Some(local) = local {
            match (self.architecture.name, &local.scaling) {
                ("gemma3", RopeScaling::Default) => self.float("rope.freq_base_swa", local.theta),
                ("olmo2", RopeScaling::Default) if local.theta == rope.theta => {}
                _ => return Err(self.refused("another rotation in the layers with a window")),
            }
        }
        let theta = match rope.scaling {
            RopeScaling::Alpha { alpha } => {
                let d = rope.rotated as f64;
                rope.theta * alpha.powf(d / (d - 2.0))
            }
            _ => rope.theta,
        };
        self.float("rope.freq_base", theta);
        self.scaling(&rope)
    }

    fn scaling(&mut self, rope: &RopeConfig) -> Result<()> {
        let positions = self.config.max_position_embeddings;
        match &rope.scaling {
            RopeScaling::Default | RopeScaling::Alpha { .. } => {}
            RopeScaling::Linear { factor } => {
                self.put("rope.scaling.type", Meta::text("linear"));
                self.float("rope.scaling.factor", *factor);
            }
            RopeScaling::Llama3 { .. } if self.architecture.name == "llama" => {
                let divisors = llama3_divisors(rope, positions);
                self.vectors.push(("rope_freqs.weight".to_owned(), divisors));
            }
            RopeScaling::LongRope { short, long, attention_factor, .. }
                if self.architecture.name == "llama" && short == long && *attention_factor == 1.0 =>
            {
                self.vectors.push(("rope_freqs.weight".to_owned(), short.iter().map(|f| *f as f32).collect()));
            }
            RopeScaling::LongRope { short, long, original, attention_factor } if self.architecture.name == "phi3" => {
                for (name, factors) in [("long", long), ("short", short)] {
                    let factors = factors.iter().map(|f| *f as f32).collect();
                    self.vectors.push((format!("rope_factors_{name}.weight"), factors));
                }
                self.number("rope.scaling.original_context_length", *original);
                self.float("rope.scaling.attn_factor", *attention_factor);
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                truncate: true,
            } => {
                let original = original_max_position_embeddings.unwrap_or(positions);
                let factor = factor.unwrap_or(positions as f64 / original as f64);
                // llama.cpp computes it from the factor alone.
                if attention_factor.is_some_and(|given| (given - 0.1 * factor.ln() - 1.0).abs() > 1e-6) {
                    return Err(self.refused("YaRN with an attention_factor of its own"));
                }
                if self.architecture.name != "mistral3" && (*beta_fast, *beta_slow) != (32.0, 1.0) {
                    return Err(self.refused("YaRN with beta_fast or beta_slow of its own"));
                }
                self.put("rope.scaling.type", Meta::text("yarn"));
                self.float("rope.scaling.factor", factor);
                self.number("rope.scaling.original_context_length", original);
                self.float("rope.scaling.yarn_beta_fast", *beta_fast);
                self.float("rope.scaling.yarn_beta_slow", *beta_slow);
                match (self.architecture.name, mscale, mscale_all_dim) {
                    (_, None, None) => {}
                    ("mistral3", Some(1.0), Some(all)) => self.float("rope.scaling.yarn_log_multiplier", *all),
                    _ => return Err(self.refused("YaRN with mscale")),
                }
            }
            _ => return Err(self.refused("this scaling of its rotation")),
        }
        match (rope.query_scaling, self.architecture.name) {
            (None, _) => Ok(()),
            (Some(scaling), "mistral3") => {
                self.float("attention.temperature_scale", scaling.beta);
                Ok(())
            }
            (Some(_), _) => Err(self.refused("queries that grow with their position")),
        }
    }
}

/// The divisor of each frequency of Llama 3.1's scaling.
fn llama3_divisors(rope: &RopeConfig, positions: usize) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        rope.scaling
    else {
        return Vec::new();
    };
    let original = original_max_position_embeddings.unwrap_or(positions) as f64;
    let divisor = |i: usize| {
        let wavelength = 2.0 * PI * rope.theta.powf(2.0 * i as f64 / rope.rotated as f64);
        if wavelength < original / high_freq_factor {
            1.0
        } else if wavelength > original / low_freq_factor {
            factor
        } else {
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..rope.rotated / 2).map(|i| divisor(i) as f32).collect()
}

/// The keys of the model at `model`, beside those of its tokenizer.
///
/// # Errors
/// A part of the configuration that llama.cpp has no key for.
pub(super) fn model_keys(model: &Path, config: &ModelConfig, architecture: Architecture) -> Result<ModelKeys> {
    let mut keys = Keys { model, architecture, config, keys: Vec::new(), vectors: Vec::new() };
    keys.check_parts()?;
    keys.sizes();
    keys.factors()?;
    keys.windows()?;
    keys.rope()?;
    let listed =
        |listed: &[usize]| config.layer_ropes.iter().enumerate().all(|(i, rope)| rope.is_none() == listed.contains(&i));
    let without: Vec<usize> = match architecture.name {
        "smollm3" => (0..config.num_layers).filter(|layer| (layer + 1).is_multiple_of(4)).collect(),
        "exaone4" => (0..config.num_layers).filter(|layer| config.layer_ropes[*layer].is_none()).collect(),
        _ => Vec::new(),
    };
    if !listed(&without) {
        return Err(keys.refused("other layers without rotation than its family's"));
    }
    Ok(ModelKeys { keys: keys.keys, vectors: keys.vectors })
}
