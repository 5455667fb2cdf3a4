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
    /// To 0 along half a period of a cosine.
    Cosine,
}

impl Schedule {
    /// The factor of step `step` (counted from 0) of `steps`: a linear rise over `warmup` steps from 0, then the
    /// schedule's decay to 0 at the end.
    pub fn factor(self, step: usize, warmup: usize, steps: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_the_factors_of_transformers() {
        // get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, 4 of 12 steps warming up.
        let at = |schedule: Schedule, step| schedule.factor(step, 4, 12);
        assert_eq!([0, 1, 4, 8, 12].map(|s| at(Schedule::Linear, s)), [0.0, 0.25, 1.0, 0.5, 0.0]);
        assert_eq!([0, 3, 4, 11].map(|s| at(Schedule::Constant, s)), [0.0, 0.75, 1.0, 1.0]);
        let cosine = [4, 6, 8, 12].map(|s| at(Schedule::Cosine, s));
        for (got, want) in cosine.into_iter().zip([1.0, 0.853_553_390_593_273_8, 0.5, 0.0]) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
        assert_eq!(Schedule::Linear.factor(0, 0, 10), 1.0);
    }
}
