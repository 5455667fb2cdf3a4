//! Losses of preferences: from the log-probabilities of two answers to the weight of each row's cross-entropy.
//!
//! With `lp` the sum of the log-probabilities of an answer's tokens, the gradient of a loss L by the logits of a token is
//! `-dL/dlp (softmax - onehot)`: that of a cross-entropy with the weight `-dL/dlp`. So a pass without gradient gives the
//! log-probabilities, the weights are computed here, and the backward pass is that of plain fine-tuning. Names and defaults are those of
//! TRL 1.16.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::data::batches::{Answers, MicroBatch};
use crate::data::settings::Feedback;

/// The loss of a preference objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreferenceLoss {
    /// Rafailov et al. 2023.
    Dpo,
    /// Azar et al. 2023, with means over an answer's tokens.
    Ipo,
    /// DPO with a share of the cross-entropy of the chosen answers (Pang et al. 2024).
    Rpo,
    /// Hong et al. 2024, without a reference.
    Orpo,
    /// Meng et al. 2024, without a reference.
    Simpo,
    /// Ethayarajh et al. 2024, for answers that are labeled one by one.
    Kto,
}

/// A preference objective with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// The loss.
    pub loss: PreferenceLoss,
    /// How strictly the model is held to the reference; in ORPO the weight of the odds ratio, in SimPO the scale of the reward.
    pub beta: f64,
    /// The share of pairs that are taken to be the wrong way round, for DPO, RPO and SimPO.
    pub label_smoothing: f64,
    /// The weight of the cross-entropy in RPO.
    pub rpo_alpha: f64,
    /// The margin that SimPO asks for.
    pub simpo_gamma: f64,
    /// The weight of good answers in KTO.
    pub desirable_weight: f64,
    /// The weight of bad answers in KTO.
    pub undesirable_weight: f64,
}

/// Sums over the preferences of micro-batches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sum of the losses.
    loss: f64,
    /// Number of preferences.
    count: usize,
    /// Sums of further values, each with the number of its terms.
    values: BTreeMap<&'static str, (f64, usize)>,
}

impl Tally {
    fn add(&mut self, name: &'static str, value: f64) {
        let (sum, count) = self.values.entry(name).or_default();
        *sum += value;
        *count += 1;
    }

    /// Adds the sums of another tally.
    pub fn merge(&mut self, other: &Self) {
        self.loss += other.loss;
        self.count += other.count;
        for (name, (sum, count)) in &other.values {
            let own = self.values.entry(name).or_default();
            own.0 += sum;
            own.1 += count;
        }
    }

    /// The sums as numbers, for [`Self::from_numbers`].
    pub fn numbers(&self) -> Vec<f64> {
        let values = NAMES.iter().flat_map(|name| {
            let (sum, count) = self.values.get(name).copied().unwrap_or_default();
            [sum, count as f64]
        });
        [self.loss, self.count as f64].into_iter().chain(values).collect()
    }

    /// The sums that [`Self::numbers`] has given.
    pub fn from_numbers(numbers: &[f64]) -> Self {
        let mut pairs = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1] as usize));
        let (loss, count) = pairs.next().unwrap_or_default();
        let values = NAMES.into_iter().zip(pairs).filter(|(_, (_, count))| *count > 0).collect();
        Self { loss, count, values }
    }

    /// The mean loss over the preferences.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.count as f64
    }

    /// The means of the further values. The margin of labeled answers is between the means of good and bad ones.
    pub fn means(&self) -> BTreeMap<String, f64> {
        let mean = |(sum, count): &(f64, usize)| sum / *count as f64;
        let mut means: BTreeMap<String, f64> =
            self.values.iter().map(|(name, value)| ((*name).to_owned(), mean(value))).collect();
        if let (Some(chosen), Some(rejected)) = (self.values.get(REWARDS[0]), self.values.get(REWARDS[1])) {
            means.entry(MARGINS.to_owned()).or_insert(mean(chosen) - mean(rejected));
        }
        means
    }
}

// TRL's names.
const REWARDS: [&str; 2] = ["rewards/chosen", "rewards/rejected"];
const LOGPS: [&str; 2] = ["logps/chosen", "logps/rejected"];
const MARGINS: &str = "rewards/margins";
const ACCURACIES: &str = "rewards/accuracies";
const KL: &str = "kl";
const NLL_LOSS: &str = "nll_loss";
const LOG_ODDS: [&str; 2] = ["log_odds_chosen", "log_odds_ratio"];
const NAMES: [&str; 10] =
    [REWARDS[0], REWARDS[1], LOGPS[0], LOGPS[1], MARGINS, ACCURACIES, KL, NLL_LOSS, LOG_ODDS[0], LOG_ODDS[1]];

/// The log-probabilities of one answer.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Sum over its tokens.
    sum: f64,
    /// Number of its tokens.
    tokens: f64,
    /// Sum under the reference.
    reference: f64,
}

impl Answer {
    fn mean(self) -> f64 {
        self.sum / self.tokens
    }

    fn ratio(self) -> f64 {
        self.sum - self.reference
    }
}

/// A loss with its slopes by the sums of log-probabilities of both answers.
#[derive(Clone, Copy, Debug)]
struct Slopes {
    loss: f64,
    by_sum: [f64; 2],
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `-log(sigmoid(x))`, without overflow.
fn neg_log_sigmoid(x: f64) -> f64 {
    (-x).max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Preference {
    /// The objective with TRL's defaults.
    pub fn new(loss: PreferenceLoss) -> Self {
        Self {
            loss,
            beta: 0.1,
            label_smoothing: 0.0,
            rpo_alpha: 1.0,
            simpo_gamma: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        }
    }

    /// True if the loss needs the log-probabilities of the model as it was before training.
    pub fn needs_reference(&self) -> bool {
        !matches!(self.loss, PreferenceLoss::Orpo | PreferenceLoss::Simpo)
    }

    /// The feedback that the data has to hold.
    pub fn feedback(&self) -> Feedback {
        match self.loss {
            PreferenceLoss::Kto => Feedback::Rated,
            _ => Feedback::Pairs,
        }
    }

    /// True if the tokens of the prompt of a chosen answer have labels too.
    pub fn learns_prompts(&self) -> bool {
        self.loss == PreferenceLoss::Orpo
    }

    /// The weight of each row's cross-entropy, from the cross-entropies of a pass without gradient, and the sums of the micro-batch.
    /// `scale` is one over the number of preferences of the step.
    pub fn weigh(&self, batch: &MicroBatch, losses: &[f32], scale: f64) -> (Vec<f32>, Tally) {
        let mut weights = vec![0.0; batch.labels.len()];
        let mut tally = Tally::default();
        let pairs: Vec<[Answer; 2]> = batch.answers.iter().map(|answers| read(batch, answers, losses)).collect();
        let divergence = self.divergence(&pairs, &mut tally);
        for (answers, pair) in batch.answers.iter().zip(&pairs) {
            let slopes = match answers.desirable {
                None => self.pair(*pair),
                Some(desirable) => self.rated(desirable, pair[0], divergence),
            };
            tally.loss += slopes.loss;
            tally.count += 1;
            for (labels, slope) in answers.labels.iter().zip(slopes.by_sum) {
                for at in labels.clone() {
                    weights[at] -= slope * scale * f64::from(batch.label_weights[at]);
                }
            }
            self.count(answers.desirable, *pair, &mut tally);
        }
        self.add_cross_entropy(batch, losses, scale, &mut weights, &mut tally);
        (weights.into_iter().map(|weight| weight as f32).collect(), tally)
    }

    /// KTO's estimate of how far the model has moved: the mean ratio of the mismatched answers, at least 0.
    fn divergence(&self, pairs: &[[Answer; 2]], tally: &mut Tally) -> f64 {
        if self.loss != PreferenceLoss::Kto || pairs.is_empty() {
            return 0.0;
        }
        let mean = pairs.iter().map(|[_, mismatched]| mismatched.ratio()).sum::<f64>() / pairs.len() as f64;
        let divergence = mean.max(0.0);
        tally.add(KL, divergence);
        divergence
    }

    /// Loss of a chosen and a rejected answer.
    fn pair(&self, pair: [Answer; 2]) -> Slopes {
        let [chosen, rejected] = pair;
        let beta = self.beta;
        // Of the difference of two scores: the loss and its slope.
        let smoothed = |x: f64| {
            let share = self.label_smoothing;
            let loss = (1.0 - share) * neg_log_sigmoid(x) + share * neg_log_sigmoid(-x);
            (loss, share * sigmoid(x) - (1.0 - share) * sigmoid(-x))
        };
        match self.loss {
            PreferenceLoss::Dpo | PreferenceLoss::Rpo | PreferenceLoss::Kto => {
                let (loss, slope) = smoothed(beta * (chosen.ratio() - rejected.ratio()));
                Slopes { loss, by_sum: [beta * slope, -beta * slope] }
            }
            PreferenceLoss::Ipo => {
                let difference = chosen.ratio() / chosen.tokens - rejected.ratio() / rejected.tokens - 0.5 / beta;
                let slope = 2.0 * difference;
                Slopes { loss: difference * difference, by_sum: [slope / chosen.tokens, -slope / rejected.tokens] }
            }
            PreferenceLoss::Simpo => {
                let (loss, slope) = smoothed(beta * (chosen.mean() - rejected.mean()) - self.simpo_gamma);
                Slopes { loss, by_sum: [beta * slope / chosen.tokens, -beta * slope / rejected.tokens] }
            }
            PreferenceLoss::Orpo => {
                let odds = log_odds(chosen) - log_odds(rejected);
                let slope = |answer: Answer| beta * sigmoid(-odds) / (improbability(answer) * answer.tokens);
                Slopes { loss: beta * neg_log_sigmoid(odds), by_sum: [-slope(chosen), slope(rejected)] }
            }
        }
    }

    /// Loss of an answer that was found good or bad.
    fn rated(&self, desirable: bool, answer: Answer, divergence: f64) -> Slopes {
        let sign = if desirable { 1.0 } else { -1.0 };
        let weight = if desirable { self.desirable_weight } else { self.undesirable_weight };
        let value = sigmoid(sign * self.beta * (answer.ratio() - divergence));
        let slope = -sign * weight * self.beta * value * (1.0 - value);
        Slopes { loss: weight * (1.0 - value), by_sum: [slope, 0.0] }
    }

    /// Adds the cross-entropy that RPO and ORPO have beside the comparison, the mean over the tokens of the chosen answers of a
    /// micro-batch, and in ORPO of their prompts.
    fn add_cross_entropy(
        &self,
        batch: &MicroBatch,
        losses: &[f32],
        scale: f64,
        weights: &mut [f64],
        tally: &mut Tally,
    ) {
        let (share, prompts) = match self.loss {
            PreferenceLoss::Rpo => (self.rpo_alpha, false),
            PreferenceLoss::Orpo => (1.0, true),
            _ => return,
        };
        let chosen = || batch.answers.iter().flat_map(|answers| answers.labels[0].clone());
        let learned: Vec<usize> = chosen().filter(|at| prompts || batch.label_weights[*at] != 0.0).collect();
        if learned.is_empty() {
            return;
        }
        let mean = learned.iter().map(|at| f64::from(losses[*at])).sum::<f64>() / learned.len() as f64;
        let pairs = batch.answers.len() as f64;
        tally.loss += share * mean * pairs;
        tally.add(NLL_LOSS, mean);
        for at in &learned {
            weights[*at] += share * scale * pairs / learned.len() as f64;
        }
    }

    /// Adds the values that TRL reports of a pair or a labeled answer.
    fn count(&self, desirable: Option<bool>, pair: [Answer; 2], tally: &mut Tally) {
        let by_mean = !self.needs_reference();
        let reward = |answer: Answer| self.beta * if by_mean { answer.mean() } else { answer.ratio() };
        let logps = |answer: Answer| if by_mean { answer.mean() } else { answer.sum };
        if let Some(desirable) = desirable {
            let at = usize::from(!desirable);
            tally.add(REWARDS[at], reward(pair[0]));
            tally.add(LOGPS[at], logps(pair[0]));
            return;
        }
        let rewards = pair.map(reward);
        for at in 0..2 {
            tally.add(REWARDS[at], rewards[at]);
            tally.add(LOGPS[at], logps(pair[at]));
        }
        tally.add(ACCURACIES, f64::from(u8::from(rewards[0] > rewards[1])));
        tally.add(MARGINS, rewards[0] - rewards[1]);
        if self.loss == PreferenceLoss::Orpo {
            let odds = log_odds(pair[0]) - log_odds(pair[1]);
            tally.add(LOG_ODDS[0], odds);
            tally.add(LOG_ODDS[1], -neg_log_sigmoid(odds));
        }
    }
}

/// `1 - exp(mean)`, held above 0 for an answer that the model is certain of.
fn improbability(answer: Answer) -> f64 {
    (-answer.mean().exp_m1()).max(1e-9)
}

/// The logarithm of the odds of an answer, by its mean log-probability.
fn log_odds(answer: Answer) -> f64 {
    answer.mean() - improbability(answer).ln()
}

/// The sums of log-probabilities of both sequences.
fn read(batch: &MicroBatch, answers: &Answers, losses: &[f32]) -> [Answer; 2] {
    let sum = |labels: &Range<usize>| sum_of_logps(batch, labels, losses);
    let tokens = |labels: &Range<usize>| {
        let count = batch.label_weights[labels.clone()].iter().filter(|weight| **weight != 0.0).count();
        count.max(1) as f64
    };
    let answer = |at: usize| Answer {
        sum: sum(&answers.labels[at]),
        tokens: tokens(&answers.labels[at]),
        reference: answers.reference[at],
    };
    [answer(0), answer(1)]
}

/// The sum of the log-probabilities of an answer's tokens, from the cross-entropy of each row.
pub(super) fn sum_of_logps(batch: &MicroBatch, labels: &Range<usize>, losses: &[f32]) -> f64 {
    let terms = labels.clone().map(|at| f64::from(losses[at]) * f64::from(batch.label_weights[at]));
    -terms.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSES: [PreferenceLoss; 6] = [
        PreferenceLoss::Dpo,
        PreferenceLoss::Ipo,
        PreferenceLoss::Rpo,
        PreferenceLoss::Orpo,
        PreferenceLoss::Simpo,
        PreferenceLoss::Kto,
    ];

    fn preference(loss: PreferenceLoss) -> Preference {
        Preference {
            loss,
            beta: 0.3,
            label_smoothing: 0.1,
            rpo_alpha: 0.7,
            simpo_gamma: 0.4,
            desirable_weight: 1.2,
            undesirable_weight: 0.8,
        }
    }

    /// Two preferences of answers of 3, 2, 1 and 4 tokens; the first answer of each has a token of its prompt.
    fn batch(rated: bool) -> MicroBatch {
        let of = |first: usize, count: usize| first..first + count;
        let reference = [[-4.0, -3.5], [-2.5, -6.0]];
        let labels = [[of(0, 4), of(4, 2)], [of(6, 2), of(8, 4)]];
        let answers = labels.into_iter().zip(reference).enumerate();
        let answers = answers
            .map(|(i, (labels, reference))| Answers { desirable: rated.then_some(i == 0), labels, reference })
            .collect();
        let mut label_weights = vec![1.0; 12];
        (label_weights[0], label_weights[6]) = (0.0, 0.0);
        MicroBatch { labels: vec![0; 12], label_weights, answers, ..MicroBatch::default() }
    }

    const ROWS: [f32; 12] = [2.0, 1.5, 0.25, 0.5, 1.25, 2.5, 0.75, 1.0, 3.0, 0.5, 2.25, 1.75];

    #[test]
    fn weights_are_the_slopes_of_the_loss_by_each_cross_entropy() {
        for loss in LOSSES {
            let (objective, batch) = (preference(loss), batch(loss == PreferenceLoss::Kto));
            let (weights, tally) = objective.weigh(&batch, &ROWS, 0.5);
            assert_eq!(tally.count, 2);
            for at in 0..ROWS.len() {
                let moved = |by: f32| {
                    let mut rows = ROWS;
                    rows[at] += by;
                    objective.weigh(&batch, &rows, 0.5).1.loss * 0.5
                };
                // KTO's divergence is a constant of the step; here it is 0 on both sides.
                let slope = (moved(1.0 / 64.0) - moved(-1.0 / 64.0)) * 32.0;
                assert!((slope - f64::from(weights[at])).abs() < 2e-4, "{loss:?} {at}: {slope} {weights:?}");
            }
        }
    }

    #[test]
    fn values_have_the_names_of_trl() {
        let (_, tally) = preference(PreferenceLoss::Dpo).weigh(&batch(false), &ROWS, 0.5);
        let means = tally.means();
        let names: Vec<&str> = means.keys().map(String::as_str).collect();
        assert_eq!(names, [LOGPS[0], LOGPS[1], ACCURACIES, REWARDS[0], MARGINS, REWARDS[1]]);
        // Chosen: -2.25 and -1; rejected: -3.75 and -7.5.
        let expected =
            [-1.625, -5.625, 1.0, 0.3 * (1.75 + 1.5) / 2.0, 0.3 * (2.0 + 3.0) / 2.0, 0.3 * (-0.25 - 1.5) / 2.0];
        for (name, expected) in names.iter().zip(expected) {
            assert!((means[*name] - expected).abs() < 1e-12, "{name}: {} {expected}", means[*name]);
        }
    }

    #[test]
    fn an_answer_that_the_model_is_certain_of_leaves_finite_numbers() {
        for loss in LOSSES {
            let batch = batch(loss == PreferenceLoss::Kto);
            for rows in [[0.0; 12], [200.0; 12]] {
                let (weights, tally) = preference(loss).weigh(&batch, &rows, 0.5);
                assert!(tally.mean_loss().is_finite() && weights.iter().all(|w| w.is_finite()), "{loss:?}");
            }
        }
    }
}
