//! Rotary position embedding: the angles of each position, as transformers' `modeling_rope_utils` computes them.

use std::f64::consts::PI;

use serde_json::Value;

use super::family::{RopeOfWindows, RopeRule};
use super::json_fields::JsonFields;
use crate::Result;

/// Above the context of every published model.
pub(super) const MAX_POSITIONS: usize = 1 << 30;

/// The change of the frequencies for sequences longer than those of pre-training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// The frequencies as they are.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor of every frequency, above 0.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a blend between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Waves longer than the original length divided by this have their frequency divided by `factor`.
        low_freq_factor: f64,
        /// Waves shorter than the original length divided by this keep their frequency; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Positions of pre-training; `None` is the model's `max_position_embeddings`.
        original_max_position_embeddings: Option<usize>,
    },
    /// The base multiplied by `alpha^(d / (d - 2))` for `d` rotated features, as Hunyuan has it.
    Alpha {
        /// The factor before it is raised to its power, above 0.
        alpha: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): each frequency divided by a factor of its own. Runs up to the length of
    /// pre-training take the short factors, longer ones the long factors.
    LongRope {
        /// The divisor of each frequency up to the positions of pre-training.
        short: Vec<f64>,
        /// The divisor of each frequency beyond them.
        long: Vec<f64>,
        /// Positions of pre-training.
        original: usize,
        /// Factor on every cosine and sine.
        attention_factor: f64,
    },
    /// Gemma 4: the frequencies of a whole head, of which those of the later pairs are 0.
    Proportional {
        /// Pairs that turn.
        turning: usize,
        /// The divisor of every frequency, above 0.
        factor: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor of the low frequencies; `None` is the model's positions divided by those of pre-training.
        factor: Option<f64>,
        /// Positions of pre-training; `None` is the model's `max_position_embeddings`.
        original_max_position_embeddings: Option<usize>,
        /// Dimensions that turn more often than this within the original length are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this within the original length are divided by `factor`.
        beta_slow: f64,
        /// Factor on every cosine and sine; `None` computes it from `mscale` and `mscale_all_dim`, or from `factor`
        /// alone.
        attention_factor: Option<f64>,
        /// Weight of the logarithm of `factor` in the numerator of the attention factor.
        mscale: Option<f64>,
        /// Weight of the logarithm of `factor` in its denominator.
        mscale_all_dim: Option<f64>,
        /// True to round the borders between kept and divided dimensions outward to whole dimensions.
        truncate: bool,
    },
}

/// Growth of queries with their position (Llama 4): `q * (1 + beta * ln(1 + floor(position / original)))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScaling {
    /// Weight of the logarithm.
    pub beta: f64,
    /// Positions up to which queries keep their size.
    pub original: usize,
}

/// Base and scaling of a rotary position embedding (Su et al. 2021, RoFormer).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// The base of the wavelengths' geometric series, above 1.
    pub theta: f64,
    /// The change of the frequencies for sequences longer than those of pre-training.
    pub scaling: RopeScaling,
    /// The first features of a head, which are rotated: an even number, at most the head size.
    pub rotated: usize,
    /// True if neighboring features form a pair, false if features half of `rotated` apart do.
    pub interleaved: bool,
    /// Growth of queries with their position; `None` where they keep their size.
    pub query_scaling: Option<QueryScaling>,
}

impl RopeConfig {
    /// The plain embedding: every feature rotated, no scaling.
    pub fn plain(theta: f64, head_dim: usize) -> Self {
        let (scaling, rotated) = (RopeScaling::Default, head_dim);
        Self { theta, scaling, rotated, interleaved: false, query_scaling: None }
    }

    /// Reads `rope_parameters` (transformers 5) or `rope_scaling`, and `rope_theta` at either place, for layers with
    /// or without a window.
    pub(crate) fn from_fields(fields: &JsonFields, rule: &RopeRule, windowed: bool, head_dim: usize) -> Result<Self> {
        let (mut parameters, mut of_kind) = (fields.object("rope_scaling", "rope_scaling.")?, false);
        if parameters.is_none() {
            parameters = fields.object("rope_parameters", "rope_parameters.")?;
        }
        if let Some(outer) = &parameters
            && outer.keys().any(|(_, value)| value.is_object())
        {
            let (key, prefix) = match windowed {
                true => ("sliding_attention", "rope_parameters.sliding_attention."),
                false => ("full_attention", "rope_parameters.full_attention."),
            };
            let inner = outer.object(key, prefix)?;
            parameters = Some(inner.ok_or_else(|| outer.error(key, "is missing, but a layer is of this kind"))?);
            of_kind = true;
        }
        let given_theta = fields.positive("rope_theta")?;
        let mut default_theta = given_theta.unwrap_or(rule.theta);
        if windowed && !of_kind {
            match rule.of_windows {
                RopeOfWindows::Same => {}
                RopeOfWindows::Key { key, default } => {
                    (parameters, default_theta) = (None, fields.positive(key)?.unwrap_or(default));
                }
                // As transformers reads it: another base at the old place is for the other layers alone.
                RopeOfWindows::Default => {
                    let inside = parameters.as_ref().map(|p| p.positive("rope_theta")).transpose()?.flatten();
                    (parameters, default_theta) = (None, inside.unwrap_or(rule.theta));
                }
            }
        }
        if rule.proportional && !windowed && parameters.is_none() {
            let theta = given_theta.unwrap_or(1e6);
            let scaling = RopeScaling::Proportional { turning: head_dim / 8, factor: 1.0 };
            return Ok(Self { scaling, ..Self::plain(theta, head_dim) });
        }
        let theta = match parameters.as_ref().map(|p| p.positive("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => default_theta,
        };
        if theta <= 1.0 {
            return Err(fields.error("rope_theta", format!("is {theta}, but must be above 1")));
        }
        let rotated = rotated(fields, parameters.as_ref(), rule, head_dim)?;
        let interleaved = rule.interleaved;
        let Some(parameters) = parameters else {
            return Ok(Self { interleaved, rotated, ..Self::plain(theta, head_dim) });
        };
        let (scaling, original) = scaling(fields, &parameters, rotated)?;
        let beta = parameters.positive("llama_4_scaling_beta")?.filter(|_| rule.query_scaling);
        let query_scaling = match beta {
            None => None,
            Some(beta) => {
                let missing = || parameters.error("original_max_position_embeddings", "is missing");
                Some(QueryScaling { beta, original: original.ok_or_else(missing)? })
            }
        };
        Ok(Self { theta, scaling, rotated, interleaved, query_scaling })
    }
}

/// The number of rotated features of a head.
fn rotated(fields: &JsonFields, parameters: Option<&JsonFields>, rule: &RopeRule, head_dim: usize) -> Result<usize> {
    // The later pairs of a proportional embedding turn by an angle of 0.
    if parameters.is_some_and(|p| matches!(p.text("rope_type"), Ok(Some("proportional")))) {
        return Ok(head_dim);
    }
    let mut part = rule.partial.unwrap_or(1.0);
    for place in [Some(fields), parameters].into_iter().flatten() {
        let Some(given) = place.positive("partial_rotary_factor")? else { continue };
        if given != 1.0 && rule.partial.is_none() {
            return Err(place.error("partial_rotary_factor", format!("is {given}, but only 1 is supported")));
        }
        part = given;
    }
    let rotated = (head_dim as f64 * part) as usize;
    if rotated < 2 || rotated > head_dim || !rotated.is_multiple_of(2) {
        let problem = format!("is {part}, which rotates {rotated} of {head_dim} features; the number must be even");
        return Err(fields.error("partial_rotary_factor", problem));
    }
    Ok(rotated)
}

/// The scaling that an object names, and the positions of pre-training where they are given.
fn scaling(fields: &JsonFields, parameters: &JsonFields, rotated: usize) -> Result<(RopeScaling, Option<usize>)> {
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    // A length outside of the object takes precedence over the one inside, as in transformers.
    let original_length = match fields.count("original_max_position_embeddings", MAX_POSITIONS)? {
        Some(length) => Some(length),
        None => parameters.count("original_max_position_embeddings", MAX_POSITIONS)?,
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "proportional" => {
            let part = parameters.positive("partial_rotary_factor")?.unwrap_or(1.0);
            let turning = ((part * rotated as f64) as usize / 2).min(rotated / 2);
            RopeScaling::Proportional { turning, factor: parameters.positive("factor")?.unwrap_or(1.0) }
        }
        "linear" => RopeScaling::Linear { factor: parameters.required_positive("factor")? },
        "dynamic" if parameters.value("alpha").is_some() => {
            RopeScaling::Alpha { alpha: parameters.required_positive("alpha")? }
        }
        "llama3" => {
            let low_freq_factor = parameters.required_positive("low_freq_factor")?;
            let high_freq_factor = parameters.required_positive("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let problem = format!("is {high_freq_factor}, but must be above low_freq_factor, {low_freq_factor}");
                return Err(parameters.error("high_freq_factor", problem));
            }
            let factor = parameters.required_positive("factor")?;
            let original_max_position_embeddings = original_length;
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }
        }
        // `su` is the name in older files.
        "longrope" | "su" => long_rope(fields, parameters, original_length, rotated)?,
        "yarn" => RopeScaling::Yarn {
            factor: parameters.positive("factor")?,
            original_max_position_embeddings: original_length,
            beta_fast: parameters.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: parameters.positive("beta_slow")?.unwrap_or(1.0),
            attention_factor: parameters.positive("attention_factor")?,
            mscale: parameters.positive("mscale")?,
            mscale_all_dim: parameters.positive("mscale_all_dim")?,
            truncate: parameters.flag("truncate", true)?,
        },
        other => {
            let problem = format!(
                "`{other}` is not supported; supported are default, linear, llama3, longrope, proportional and yarn"
            );
            return Err(parameters.error("rope_type", problem));
        }
    };
    Ok((scaling, original_length))
}

fn long_rope(
    fields: &JsonFields,
    parameters: &JsonFields,
    original: Option<usize>,
    rotated: usize,
) -> Result<RopeScaling> {
    let positions = fields.count("max_position_embeddings", MAX_POSITIONS)?;
    let original =
        original.or(positions).ok_or_else(|| parameters.error("original_max_position_embeddings", "is missing"))?;
    let factors = |key: &str| -> Result<Vec<f64>> {
        let numbers = parameters.value(key).and_then(Value::as_array).map(|list| {
            list.iter()
                .filter_map(Value::as_f64)
                .filter(|factor| factor.is_finite() && *factor > 0.0)
                .collect::<Vec<f64>>()
        });
        let wanted = rotated / 2;
        numbers.filter(|list| list.len() == wanted).ok_or_else(|| {
            parameters.error(
                key,
                format!("must be a list of {wanted} numbers above 0, one for each pair of rotated features"),
            )
        })
    };
    let grown = match parameters.positive("factor")? {
        Some(factor) => factor,
        None => positions.unwrap_or(original) as f64 / original as f64,
    };
    let computed = if grown <= 1.0 { 1.0 } else { (1.0 + grown.ln() / (original as f64).ln()).sqrt() };
    let attention_factor = parameters.positive("attention_factor")?.unwrap_or(computed);
    Ok(RopeScaling::LongRope {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original,
        attention_factor,
    })
}

/// The `rotated / 2` angular frequencies (radians per position), and the factor on every cosine and sine, of a run
/// over `positions` positions.
pub fn inverse_frequencies(rope: &RopeConfig, max_position_embeddings: usize, positions: usize) -> (Vec<f32>, f32) {
    let head_dim = rope.rotated;
    let theta = match rope.scaling {
        RopeScaling::Alpha { alpha } => rope.theta * alpha.powf(head_dim as f64 / (head_dim as f64 - 2.0)),
        _ => rope.theta,
    };
    let base: Vec<f32> =
        (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect();
    match &rope.scaling {
        RopeScaling::Default | RopeScaling::Alpha { .. } => (base, 1.0),
        RopeScaling::Proportional { turning, factor } => {
            let frequency = |(i, f)| if i < *turning { f / *factor as f32 } else { 0.0 };
            (base.into_iter().enumerate().map(frequency).collect(), 1.0)
        }
        RopeScaling::LongRope { short, long, original, attention_factor } => {
            let factors = if positions > *original { long } else { short };
            let wave = |i: usize| (theta as f32).powf((2 * i) as f32 / head_dim as f32);
            let frequencies = factors.iter().enumerate().map(|(i, factor)| 1.0 / (*factor as f32 * wave(i)));
            (frequencies.collect(), *attention_factor as f32)
        }
        RopeScaling::Linear { factor } => (base.iter().map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings.unwrap_or(max_position_embeddings) as f64;
            let (low_wavelength, high_wavelength) = (original / low_freq_factor, original / high_freq_factor);
            let scaled = |&frequency: &f32| {
                let wavelength = (2.0 * PI) as f32 / frequency;
                if wavelength > low_wavelength as f32 {
                    frequency / *factor as f32
                } else if wavelength < high_wavelength as f32 {
                    frequency
                } else {
                    let smooth = (original as f32 / wavelength - *low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * frequency / *factor as f32 + smooth * frequency
                }
            };
            (base.iter().map(scaled).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            let original = original_max_position_embeddings.unwrap_or(max_position_embeddings) as f64;
            let factor = factor.unwrap_or(max_position_embeddings as f64 / original);
            let attention_factor = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
                (Some(m), Some(all)) => yarn_magnitude(factor, *m) / yarn_magnitude(factor, *all),
                _ => yarn_magnitude(factor, 1.0),
            });
            // The dimension whose wave turns `rotations` times within the original length.
            let dimension =
                |rotations: f64| head_dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let frequencies = base.iter().enumerate().map(|(i, &extrapolated)| {
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let wave = (rope.theta as f32).powf((2 * i) as f32 / head_dim as f32);
                let interpolated = 1.0 / (factor as f32 * wave);
                let keep = 1.0 - ramp;
                interpolated * (1.0 - keep) + extrapolated * keep
            });
            (frequencies.collect(), attention_factor as f32)
        }
    }
}

fn yarn_magnitude(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

/// `[cosine, sine]` of every angle at `[position * rotated / 2 + i]`, the attention factor multiplied in.
///
/// The angle is the f32 product of position and frequency, as in transformers; element `i` turns with element
/// `i + rotated / 2`, or with its neighbor where the embedding is interleaved.
pub fn table(rope: &RopeConfig, max_position_embeddings: usize, positions: usize) -> Vec<[f32; 2]> {
    let (frequencies, factor) = inverse_frequencies(rope, max_position_embeddings, positions);
    (0..positions)
        .flat_map(|position| frequencies.iter().map(move |frequency| position as f32 * frequency))
        .map(|angle| [angle.cos() * factor, angle.sin() * factor])
        .collect()
}

/// The table of [`table`] for queries, which may grow with their position.
pub fn query_table(rope: &RopeConfig, max_position_embeddings: usize, positions: usize) -> Vec<[f32; 2]> {
    let mut table = table(rope, max_position_embeddings, positions);
    if let Some(QueryScaling { beta, original }) = rope.query_scaling {
        for (position, row) in table.chunks_exact_mut(rope.rotated / 2).enumerate() {
            let growth = 1.0 + beta * (1.0 + (position / original) as f64).ln();
            row.iter_mut().flatten().for_each(|value| *value *= growth as f32);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One case: theta, head_dim, max_position_embeddings, scaling, then transformers 5.23's numbers:
    /// attention factor, frequencies at indices, [cosine, sine] of index `head_dim / 4` at position 1000.
    type Case = (f64, usize, usize, RopeScaling, f32, &'static [(usize, f32)], [f32; 2]);

    /// The factors are those of the run's length; the numbers are transformers' `longrope`.
    #[test]
    fn long_rope_changes_its_factors_beyond_the_length_of_pre_training() {
        let text = r#"{"model_type": "phi3", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 4, "max_position_embeddings": 128, "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.2, 1.5, 1.7, 2.0, 2.5],
            "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 9.0]}}"#;
        let config =
            |text: &str| crate::model::config::ModelConfig::from_json(std::path::Path::new("config.json"), text);
        let rope = config(text).unwrap().ropes.remove(0);
        let short = [1.0, 0.179_536_21, 0.030_943_92, 0.005_882_353, 0.001_077_217_2, 0.000_185_663_58];
        let long = [0.666_666_7, 0.107_721_72, 0.015_471_96, 0.0025, 0.000_359_072_38, 5.157_322e-5];
        for (positions, expected) in [(32, short), (33, long)] {
            let (found, factor) = inverse_frequencies(&rope, 128, positions);
            assert!((factor - 1.183_216).abs() < 1e-6, "{factor}");
            for (found, expected) in found.iter().zip(expected) {
                assert!((found / expected - 1.0_f32).abs() < 1e-6, "{found} {expected}");
            }
        }
        let problem = config(&text.replace("[1.5, 2.0,", "[1.5,")).unwrap_err().to_string();
        assert!(problem.contains("long_factor") && problem.contains("a list of 6 numbers"), "{problem}");
    }

    fn cases() -> Vec<Case> {
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: Some(8192),
        };
        let yarn = |factor, original, beta_slow, mscale, mscale_all_dim, truncate| RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: Some(original),
            beta_fast: 32.0,
            beta_slow,
            attention_factor: None,
            mscale,
            mscale_all_dim,
            truncate,
        };
        vec![
            (
                5e5,
                64,
                4096,
                RopeScaling::Default,
                1.0,
                &[(0, 1.0), (1, 0.663_601_3), (16, 0.001_414_213_4), (31, 3.013_858e-6)],
                [0.155_943_84, 0.987_765_9],
            ),
            (
                1e4,
                32,
                8192,
                RopeScaling::Linear { factor: 4.0 },
                1.0,
                &[(0, 0.25), (1, 0.140_585_33), (8, 0.0025), (15, 4.445_698_5e-5)],
                [-0.801_143_6, 0.598_472_1],
            ),
            (
                5e5,
                64,
                131_072,
                llama3,
                1.0,
                &[(1, 0.663_601_3), (16, 4.295_567e-4), (18, 1.946_163_9e-5), (31, 9.418_306_5e-8)],
                [0.909_150_5, 0.416_467_82],
            ),
            (
                1e6,
                128,
                131_072,
                yarn(None, 32_768, 1.0, None, None, true),
                1.138_629_4,
                &[(16, 0.031_622_78), (32, 6.029_411_4e-4), (34, 3.342_405_5e-4), (63, 3.102_344_4e-7)],
                [0.937_856_44, 0.645_679_7],
            ),
            (
                1e4,
                64,
                16_384,
                yarn(Some(40.0), 4096, 2.0, Some(1.0), Some(0.7), false),
                1.087_954_6,
                &[(8, 0.1), (16, 0.004_405_078_5), (18, 0.001_338_810_4), (31, 3.333_803_5e-6)],
                [-0.329_102_28, -1.036_984_6],
            ),
        ]
    }

    #[test]
    fn frequencies_and_table_equal_those_of_transformers() {
        for (theta, head_dim, max_positions, scaling, attention, frequencies, at_1000) in cases() {
            let rope = RopeConfig { scaling, ..RopeConfig::plain(theta, head_dim) };
            let (found, factor) = inverse_frequencies(&rope, max_positions, max_positions);
            assert_eq!(found.len(), head_dim / 2);
            assert!((factor - attention).abs() < 1e-6, "{rope:?}: {factor}");
            for &(i, expected) in frequencies {
                assert!((found[i] / expected - 1.0).abs() < 3e-7, "{rope:?} [{i}]: {} not {expected}", found[i]);
            }
            let table = table(&rope, max_positions, 1001);
            assert_eq!(table.len(), 1001 * head_dim / 2);
            assert_eq!(table[0], [factor, 0.0]);
            let row = table[1000 * head_dim / 2 + head_dim / 4];
            for (found, expected) in row.iter().zip(at_1000) {
                assert!((found - expected).abs() < 2e-6, "{rope:?}: {row:?} not {at_1000:?}");
            }
        }
    }
}
