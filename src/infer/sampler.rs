//! Samples the next token from logits. Settings have the meaning and order of transformers: repetition penalty, temperature, top-k,
//! top-p, min-p.

use std::collections::BTreeSet;

use crate::random::{Stream, uniform};
use crate::setting::{Key, MIN_P, REPETITION_PENALTY, TEMPERATURE, TOP_P};
use crate::{Error, Result};

/// The choice of a token from logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    /// Divisor of the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Number of most likely tokens to sample from (ties with the last one stay); 0 is off.
    pub top_k: usize,
    /// Samples from the most likely tokens that together reach this probability; 1 is off.
    pub top_p: f32,
    /// Samples from tokens that are at least this many times as likely as the most likely one, from 0 (off) to 1.
    pub min_p: f32,
    /// Penalty of tokens that occurred before: positive logits are divided by it, negative ones multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Seed of the draws; an equal seed repeats the text.
    pub seed: u64,
}

impl Default for SamplingSettings {
    /// Greedy: all filters are off.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingSettings {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// A setting is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse =
            |key: Key, value: f32, range| Err(Error::setting(key, format!("{key} is {value}, but must be {range}")));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse(TEMPERATURE, self.temperature, "0 (greedy) or a number above 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(TOP_P, self.top_p, "above 0 and at most 1 (off)");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse(MIN_P, self.min_p, "from 0 (off) to 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return refuse(REPETITION_PENALTY, self.repetition_penalty, "a number above 0; 1 is off");
        }
        Ok(())
    }
}

/// Samples the token after `text` (prompt and generated tokens) from its `logits` `[vocabulary]`. The draw depends only on the seed
/// and the length of the text.
///
/// # Errors
/// Settings are out of range, or logits are missing, NaN or infinite.
pub fn next_token(logits: &[f32], text: &[u32], settings: &SamplingSettings) -> Result<u32> {
    settings.check()?;
    if let Some(at) = logits.iter().position(|l| !l.is_finite()) {
        let problem =
            format!("the model's logits are not finite (token {at} has {}): generation cannot go on", logits[at]);
        return Err(Error::Training(problem));
    }
    let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    penalize(&mut logits, text, f64::from(settings.repetition_penalty));
    let token = if settings.temperature == 0.0 {
        likeliest(&logits)
    } else {
        let draw = f64::from(uniform(settings.seed, Stream::Sampling, 0, text.len() as u64));
        pick(&candidates(&logits, settings), draw)
    };
    token.ok_or_else(|| Error::Training("the model gave no logits".to_owned()))
}

/// Applies the repetition penalty of Keskar et al. 2019 (CTRL) once to every token that occurs in `text`.
fn penalize(logits: &mut [f64], text: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    for token in text.iter().collect::<BTreeSet<_>>() {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Returns the index of the largest logit; of equal ones the first.
fn likeliest(logits: &[f64]) -> Option<u32> {
    let first_largest = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).reduce(first_largest).map(|at| at as u32)
}

/// Returns the tokens that remain after temperature, top-k and top-p with their probabilities, most likely first. They sum to 1.
fn candidates(logits: &[f64], settings: &SamplingSettings) -> Vec<(u32, f64)> {
    let temperature = f64::from(settings.temperature);
    let mut kept: Vec<(u32, f64)> = logits.iter().enumerate().map(|(i, l)| (i as u32, l / temperature)).collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if settings.top_k > 0
        && let Some((_, lowest)) = kept.get(settings.top_k - 1).copied()
    {
        // Tokens exactly as likely as the k-th token stay, as in transformers.
        kept.retain(|(_, logit)| *logit >= lowest);
    }
    softmax(&mut kept);
    if settings.top_p < 1.0 {
        // Top-p drops a token if it and all less likely tokens together have at most 1 - top_p. The most likely token always stays.
        let mut before = 0.0;
        let reached = kept.iter().position(|(_, p)| {
            before += p;
            before >= f64::from(settings.top_p)
        });
        kept.truncate(reached.map_or(kept.len(), |at| at + 1));
        normalize(&mut kept);
    }
    if settings.min_p > 0.0 {
        let least = kept.first().map_or(0.0, |(_, p)| p * f64::from(settings.min_p));
        kept.retain(|(_, p)| *p >= least);
        normalize(&mut kept);
    }
    kept
}

/// Divides probabilities by their sum.
fn normalize(kept: &mut [(u32, f64)]) {
    let total: f64 = kept.iter().map(|(_, p)| p).sum();
    kept.iter_mut().for_each(|(_, p)| *p /= total);
}

/// Computes the softmax of logits in descending order.
fn softmax(values: &mut [(u32, f64)]) {
    let highest = values.first().map_or(0.0, |(_, logit)| *logit);
    values.iter_mut().for_each(|(_, v)| *v = (*v - highest).exp());
    let total: f64 = values.iter().map(|(_, v)| v).sum();
    values.iter_mut().for_each(|(_, v)| *v /= total);
}

/// Returns the candidate whose part of [0, 1) contains the draw.
fn pick(candidates: &[(u32, f64)], draw: f64) -> Option<u32> {
    let mut below = 0.0;
    let found = candidates.iter().find(|(_, p)| {
        below += p;
        draw < below
    });
    // Rounding may leave the sum of the probabilities slightly below 1.
    found.or(candidates.last()).map(|(token, _)| *token)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.1, 0.4, 0.3, 0.2 before any setting.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.4, 0.3, 0.2].map(f32::ln).to_vec()
    }

    fn kept(settings: SamplingSettings) -> Vec<(u32, f64)> {
        let logits: Vec<f64> = logits().iter().map(|l| f64::from(*l)).collect();
        candidates(&logits, &settings)
    }

    fn assert_kept(settings: SamplingSettings, want: &[(u32, f64)]) {
        let got = kept(settings);
        let close = |((a, p), (b, q)): (&(u32, f64), &(u32, f64))| a == b && (p - q).abs() < 1e-6;
        assert!(got.len() == want.len() && got.iter().zip(want).all(close), "{settings:?}: {got:?}, not {want:?}");
    }

    const WARM: SamplingSettings =
        SamplingSettings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 };

    #[test]
    fn filters_equal_hand_computed_shares() {
        assert_kept(WARM, &[(1, 0.4), (2, 0.3), (3, 0.2), (0, 0.1)]);
        // Halving the temperature squares the probabilities: 16, 9, 4, 1 of 30.
        let cold = SamplingSettings { temperature: 0.5, ..WARM };
        assert_kept(cold, &[(1, 16.0 / 30.0), (2, 0.3), (3, 4.0 / 30.0), (0, 1.0 / 30.0)]);
        assert_kept(SamplingSettings { top_k: 2, ..WARM }, &[(1, 4.0 / 7.0), (2, 3.0 / 7.0)]);
        assert_kept(SamplingSettings { top_k: 9, ..WARM }, &kept(WARM));
        assert_kept(SamplingSettings { top_p: 0.69, ..WARM }, &[(1, 4.0 / 7.0), (2, 3.0 / 7.0)]);
        assert_kept(SamplingSettings { top_p: 0.71, ..WARM }, &[(1, 4.0 / 9.0), (2, 3.0 / 9.0), (3, 2.0 / 9.0)]);
        assert_kept(SamplingSettings { top_p: 1e-6, ..WARM }, &[(1, 1.0)]);
        assert_kept(SamplingSettings { min_p: 0.6, ..WARM }, &[(1, 4.0 / 7.0), (2, 3.0 / 7.0)]);
        assert_kept(SamplingSettings { min_p: 1.0, ..WARM }, &[(1, 1.0)]);
        // Top-p sees what top-k has left: 4/7 alone reaches 0.5.
        assert_kept(SamplingSettings { top_k: 2, top_p: 0.5, ..WARM }, &[(1, 1.0)]);
        // And what the temperature has made of it: 16/30 alone reaches 0.5, 0.4 would not.
        assert_kept(SamplingSettings { top_p: 0.5, ..cold }, &[(1, 1.0)]);
        assert_kept(SamplingSettings { top_p: 0.5, ..WARM }, &[(1, 4.0 / 7.0), (2, 3.0 / 7.0)]);
    }

    #[test]
    fn ties_at_the_kth_place_stay() {
        let got = candidates(&[1.0, 2.0, 1.0, 0.0], &SamplingSettings { top_k: 2, ..WARM });
        assert_eq!(got.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 0, 2]);
    }

    #[test]
    fn the_penalty_lowers_what_occurred_once_and_by_sign() {
        let mut logits = [2.0, -1.0, 3.0, 0.5];
        penalize(&mut logits, &[0, 1, 1, 0, 77], 2.0);
        assert_eq!(logits, [1.0, -2.0, 3.0, 0.5]);
        let settings = SamplingSettings { repetition_penalty: 2.0, ..SamplingSettings::default() };
        assert_eq!(next_token(&[2.0, 1.5, -1.0], &[], &settings).unwrap(), 0);
        assert_eq!(next_token(&[2.0, 1.5, -1.0], &[0], &settings).unwrap(), 1);
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let settings = SamplingSettings::default();
        assert_eq!(next_token(&[0.0, 5.0, 5.0], &[], &settings).unwrap(), 1);
        assert_eq!(next_token(&[-3.0], &[0], &settings).unwrap(), 0);
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        const DRAWS: usize = 20_000;
        let draw = |length: usize, seed| {
            let text = vec![0; length];
            next_token(&logits(), &text, &SamplingSettings { seed, ..WARM }).unwrap()
        };
        let logits: Vec<f64> = logits().iter().map(|l| f64::from(*l)).collect();
        let shares = candidates(&logits, &WARM);
        let mut counts = [0usize; 4];
        for i in 0..DRAWS {
            let token = pick(&shares, f64::from(uniform(3, Stream::Sampling, 0, i as u64))).unwrap();
            counts[token as usize] += 1;
        }
        for (count, want) in counts.iter().zip([0.1, 0.4, 0.3, 0.2]) {
            let share = *count as f64 / DRAWS as f64;
            assert!((share - want).abs() < 0.015, "{counts:?}");
        }
        let texts: Vec<Vec<u32>> = [1, 1, 2].map(|seed| (0..60).map(|i| draw(i, seed)).collect()).to_vec();
        assert_eq!(texts[0], texts[1]);
        assert_ne!(texts[0], texts[2]);
        assert_eq!(pick(&[(4, 0.5), (6, 0.49)], 0.9999), Some(6));
    }

    #[test]
    fn bad_logits_and_settings_are_errors() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = next_token(&[0.0, bad], &[], &WARM).unwrap_err().to_string();
            assert!(error.contains("not finite") && error.contains("token 1"), "{error}");
        }
        assert!(next_token(&[], &[], &WARM).is_err() && next_token(&[], &[], &SamplingSettings::default()).is_err());
        for (settings, name) in [
            (SamplingSettings { temperature: -1.0, ..WARM }, "temperature"),
            (SamplingSettings { temperature: f32::NAN, ..WARM }, "temperature"),
            (SamplingSettings { top_p: 0.0, ..WARM }, "top-p"),
            (SamplingSettings { top_p: 1.5, ..WARM }, "top-p"),
            (SamplingSettings { repetition_penalty: 0.0, ..WARM }, "penalty"),
        ] {
            let error = next_token(&[0.0], &[], &settings).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
