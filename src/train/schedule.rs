//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

/// The learning rate over the steps, as the schedules of that name in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// No decay.
    #[serde(alias = "constant_with_warmup")]
    #[cfg_attr(feature = "cli", value(alias = "constant_with_warmup"))]
    Constant,
    /// To 0 in a straight line.
    Linear,
    /// To 0 along half a period of a cosine; transformers calls it `cosine_with_min_lr` where it ends above 0.
    #[serde(alias = "cosine_with_min_lr")]
    #[cfg_attr(feature = "cli", value(alias = "cosine_with_min_lr"))]
    Cosine,
    /// As [`Self::Cosine`], several times in a row, each from the peak.
    #[serde(alias = "cosine_with_restarts")]
    #[cfg_attr(feature = "cli", value(alias = "cosine_with_restarts"))]
    CosineWithRestarts,
    /// No decay, and then one over the last steps (WSD, Hu et al. 2024).
    #[serde(alias = "warmup_stable_decay", alias = "wsd")]
    #[cfg_attr(feature = "cli", value(alias = "warmup_stable_decay", alias = "wsd"))]
    WarmupStableDecay,
    /// To `min_lr_ratio` along a power of what is left.
    Polynomial,
    /// With the inverse square root of the steps; after a warm-up of `timescale` steps a step `t` has the factor `sqrt(timescale / t)`.
    #[serde(alias = "inverse_sqrt")]
    #[cfg_attr(feature = "cli", value(alias = "inverse_sqrt"))]
    InverseSqrt,
}

impl Schedule {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::CosineWithRestarts => "cosine-with-restarts",
            Self::WarmupStableDecay => "warmup-stable-decay",
            Self::Polynomial => "polynomial",
            Self::InverseSqrt => "inverse-sqrt",
        }
    }
}

/// The form of the decay at the end of [`Schedule::WarmupStableDecay`], by its names in transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum DecayType {
    /// Half a period of a cosine.
    #[default]
    #[serde(rename = "cosine")]
    Cosine,
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// One minus the square root of the progress.
    #[serde(rename = "1-sqrt")]
    #[cfg_attr(feature = "cli", value(name = "1-sqrt"))]
    OneMinusSqrt,
}

/// A schedule with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decay {
    /// The schedule.
    pub schedule: Schedule,
    /// Steps of a linear rise from 0, or from `min_lr_ratio` in [`Schedule::WarmupStableDecay`].
    pub warmup: usize,
    /// Times that [`Schedule::CosineWithRestarts`] decays.
    pub num_cycles: usize,
    /// The factor at the end of [`Schedule::Cosine`], [`Schedule::WarmupStableDecay`] and [`Schedule::Polynomial`].
    pub min_lr_ratio: f64,
    /// Steps of the decay of [`Schedule::WarmupStableDecay`].
    pub num_decay_steps: usize,
    /// Form of that decay.
    pub decay_type: DecayType,
    /// Exponent of [`Schedule::Polynomial`].
    pub power: f64,
    /// Steps after which [`Schedule::InverseSqrt`] without a warm-up would have the factor 1; at least 1.
    pub timescale: usize,
}

impl Decay {
    /// The factor of step `step` (counted from 0) of `steps`, as transformers computes it.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let (warmup, least) = (self.warmup, self.min_lr_ratio);
        let above = |factor: f64| (factor * (1.0 - least) + least).max(0.0);
        if step < warmup {
            let rise = step as f64 / warmup as f64;
            return if self.schedule == Schedule::WarmupStableDecay { above(rise) } else { rise };
        }
        let progress = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
        let half_cosine = |progress: f64| 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine => above(half_cosine(progress)),
            Schedule::CosineWithRestarts if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts => half_cosine((self.num_cycles as f64 * progress).fract()).max(0.0),
            Schedule::Polynomial => above((1.0 - progress).max(0.0).powf(self.power)),
            Schedule::InverseSqrt => {
                let since = (step + self.timescale) as f64 - warmup as f64;
                1.0 / (since / self.timescale.max(1) as f64).sqrt()
            }
            Schedule::WarmupStableDecay => {
                // A decay that is longer than the rest after the warm-up begins within itself.
                let since_begin = (step + self.num_decay_steps) as f64 - steps as f64;
                if since_begin < 0.0 {
                    return 1.0;
                }
                let progress = (since_begin / self.num_decay_steps.max(1) as f64).min(1.0);
                above(match self.decay_type {
                    DecayType::Cosine => half_cosine(progress),
                    DecayType::Linear => 1.0 - progress,
                    DecayType::OneMinusSqrt => 1.0 - progress.sqrt(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decay(schedule: Schedule, warmup: usize) -> Decay {
        Decay {
            schedule,
            warmup,
            num_cycles: 1,
            min_lr_ratio: 0.0,
            num_decay_steps: 0,
            decay_type: DecayType::Cosine,
            power: 1.0,
            timescale: 1,
        }
    }

    fn assert_factors(decay: Decay, steps: usize, expected: &[(usize, f64)]) {
        for (step, want) in expected {
            let got = decay.factor(*step, steps);
            assert!((got - want).abs() < 1e-12, "{decay:?}: {got}, not {want}, at step {step}");
        }
    }

    #[test]
    fn schedules_have_the_factors_of_transformers() {
        assert_factors(decay(Schedule::Linear, 4), 12, &[(0, 0.0), (1, 0.25), (4, 1.0), (8, 0.5), (12, 0.0)]);
        assert_factors(decay(Schedule::Constant, 4), 12, &[(0, 0.0), (3, 0.75), (4, 1.0), (11, 1.0)]);
        assert_factors(decay(Schedule::Cosine, 4), 12, &[(4, 1.0), (6, 0.8535533905932738), (8, 0.5), (12, 0.0)]);
        assert_factors(decay(Schedule::Linear, 0), 10, &[(0, 1.0)]);
        // get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate 0.2.
        let least = Decay { min_lr_ratio: 0.2, ..decay(Schedule::Cosine, 4) };
        assert_factors(least, 20, &[(0, 0.0), (2, 0.5), (4, 1.0), (8, 0.882842712474619), (12, 0.6), (20, 0.2)]);
        let restarts = Decay { num_cycles: 3, ..decay(Schedule::CosineWithRestarts, 4) };
        let expected = [
            (2, 0.5),
            (4, 1.0),
            (8, 0.14644660940672627),
            (9, 0.009607359798384785),
            (10, 0.9619397662556434),
            (15, 0.9903926402016152),
            (19, 0.08426519384872733),
            (20, 0.0),
        ];
        assert_factors(restarts, 20, &expected);
    }

    /// get_polynomial_decay_schedule_with_warmup and get_inverse_sqrt_schedule.
    #[test]
    fn polynomials_and_roots_have_the_factors_of_transformers() {
        let linear = Decay { min_lr_ratio: 1e-7 / 2e-4, ..decay(Schedule::Polynomial, 4) };
        assert_factors(linear, 20, &[(0, 0.0), (3, 0.75), (4, 1.0), (9, 0.6876562500000001), (19, 0.06296875)]);
        let cubic = Decay { min_lr_ratio: 0.05, power: 3.0, ..decay(Schedule::Polynomial, 2) };
        assert_factors(cubic, 12, &[(1, 0.5), (2, 1.0), (5, 0.3758499999999999), (11, 0.050949999999999995)]);
        let half = Decay { power: 0.5, ..decay(Schedule::Polynomial, 0) };
        assert_factors(half, 9, &[(0, 1.0), (1, 0.9428090415820634), (8, 0.3333333333333334)]);
        let root = Decay { timescale: 4, ..decay(Schedule::InverseSqrt, 4) };
        assert_factors(root, 20, &[(0, 0.0), (3, 0.75), (4, 1.0), (5, 0.8944271909999159), (19, 0.4588314677411235)]);
        let own = Decay { timescale: 10, ..decay(Schedule::InverseSqrt, 4) };
        assert_factors(own, 20, &[(2, 0.5), (4, 1.0), (5, 0.9534625892455922), (19, 0.6324555320336759)]);
        let none = Decay { timescale: 10_000, ..decay(Schedule::InverseSqrt, 0) };
        assert_factors(none, 20, &[(0, 1.0), (1, 0.9999500037496877), (19, 0.9990513516101199)]);
    }

    #[test]
    fn the_stable_phase_ends_in_the_decay_of_transformers() {
        let wsd = Decay { min_lr_ratio: 0.1, num_decay_steps: 6, ..decay(Schedule::WarmupStableDecay, 4) };
        let expected = [
            (0, 0.1),
            (1, 0.325),
            (4, 1.0),
            (14, 1.0),
            (15, 0.9397114317029974),
            (17, 0.55),
            (19, 0.16028856829700258),
            (20, 0.1),
        ];
        assert_factors(wsd, 20, &expected);
        let other = |decay_type| Decay { decay_type, num_decay_steps: 6, ..decay(Schedule::WarmupStableDecay, 0) };
        assert_factors(other(DecayType::Linear), 10, &[(3, 1.0), (4, 1.0), (5, 5.0 / 6.0), (9, 1.0 / 6.0)]);
        assert_factors(other(DecayType::OneMinusSqrt), 10, &[(5, 0.591751709536137), (8, 0.18350341907227397)]);
        let long = Decay { num_decay_steps: 40, ..decay(Schedule::WarmupStableDecay, 4) };
        assert_factors(long, 20, &[(3, 0.75), (4, 0.3454915028125263), (20, 0.0)]);
    }
}
