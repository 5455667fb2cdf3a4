//! Distillation from the likeliest tokens of a teacher (Hinton et al. 2015), for a chunk of rows: with the teacher's probabilities `p`,
//! a temperature T and the share h of the label,
//! `loss = (1 - h) T^2 sum_i p_i (log p_i - log softmax(z / T)_i) + h (log(sum_j exp(z_j)) - z_label)`, and in place of the logits its
//! gradient `dz_j = ((1 - h) T (softmax(z / T)_j - p_j) + h (softmax(z)_j - [j = label])) * weight`, with a weight for each row.
//!
//! `p` is given for few tokens and adds up to 1. The factor T^2 keeps the gradient's size where the temperature changes.

use super::cross_entropy::{LogitRange, LossVariant};
use super::elementwise;
pub use super::rows::NO_ROW;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// The most tokens of a teacher for a row: a workgroup keeps a number for each.
pub const MAX_TOP_K: u32 = 1024;
/// The tokens of a teacher for each row unless told otherwise.
pub const DEFAULT_TOP_K: usize = 64;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        top_k: u32,
        logit_scale: f32,
        cap: f32,
        temperature: f32,
        hard_share: f32,
    }
}

/// The loss of a student.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// Tokens of the teacher for each row, at most [`MAX_TOP_K`].
    pub top_k: u32,
    /// The divisor of the logits of teacher and student, above 0.
    pub temperature: f32,
    /// The share of the cross-entropy with the label, from 0 to below 1.
    pub hard_label_share: f32,
}

/// The label of each row, and the probabilities of its teacher.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// One u32 per row, where [`NO_ROW`] (or any value outside the vocabulary) gives loss and gradient 0.
    pub labels: View,
    /// One f32 per row.
    pub label_weights: View,
    /// `top_k` u32 per row, ascending; [`NO_ROW`] where there are fewer.
    pub ids: View,
    /// The probability of each of `ids` at the temperature; those of a row add up to 1.
    pub probabilities: View,
}

fn kernel(variant: LossVariant) -> Kernel {
    let kernel = Kernel::new::<Params>("distillation", shader!("distillation.wgsl"));
    variant.join(kernel).constant("MAX_TOP_K", MAX_TOP_K)
}

pub(super) fn kernels() -> Vec<Kernel> {
    LossVariant::kinds().map(kernel).collect()
}

/// Computes the losses of the rows of `logits`, `[rows, vocabulary]` as the head computes them, without their weights, and beside them
/// those by the labels alone. The losses are those of the logits in their range. With `with_gradient` the gradient of
/// `sum(losses * label_weights)` replaces the logits.
pub fn forward_backward(
    rec: &mut Recorder,
    (logits, range): (Matrix, LogitRange),
    targets: Targets,
    distillation: Distillation,
    [losses, label_losses]: [View; 2],
    with_gradient: bool,
) {
    let Distillation { top_k, temperature, hard_label_share: hard_share } = distillation;
    let Targets { labels, label_weights, ids, probabilities } = targets;
    let bytes = 4 * u64::from(logits.rows);
    let enough = [labels, label_weights, losses, label_losses].iter().all(|view| view.bytes >= bytes)
        && [ids, probabilities].iter().all(|view| view.bytes >= bytes * u64::from(top_k));
    assert!(enough && (1..=MAX_TOP_K).contains(&top_k), "{targets:?}, {losses:?} for {} rows", logits.rows);
    let (rows, cols, ld) = (logits.rows, logits.cols, logits.ld);
    let (logit_scale, cap) = (range.scale, range.cap.unwrap_or(1.0));
    let params = Params { rows, cols, ld, top_k, logit_scale, cap, temperature, hard_share };
    let views = [labels, label_weights, ids, probabilities, losses, label_losses, logits.view];
    let groups = rec.fold(u64::from(rows));
    let work = 12 * elementwise::elements(logits);
    let kernel = kernel(LossVariant { cpu: rec.capabilities.cpu, gradient: with_gradient, range });
    rec.dispatch("distillation", kernel, &views, &params, groups, work);
}

/// The formulas in plain loops, in f64.
#[cfg(test)]
mod twin {
    use super::Distillation;

    fn log_softmax(row: &[f64], temperature: f64) -> Vec<f64> {
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|z| ((z - highest) / temperature).exp()).sum();
        row.iter().map(|z| (z - highest) / temperature - sum.ln()).collect()
    }

    /// The loss of each row, and that by its label. `teacher` has the probability of every token, row by row.
    pub(super) fn forward(logits: &[f64], labels: &[u32], teacher: &[f64], of: Distillation) -> [Vec<f64>; 2] {
        let vocabulary = logits.len() / labels.len();
        let (temperature, share) = (f64::from(of.temperature), f64::from(of.hard_label_share));
        let rows = logits.chunks_exact(vocabulary).zip(teacher.chunks_exact(vocabulary)).zip(labels);
        let losses = rows.map(|((row, teacher), label)| {
            let Some(hard) = log_softmax(row, 1.0).get(*label as usize).map(|log| -log) else { return (0.0, 0.0) };
            let terms = teacher.iter().zip(log_softmax(row, temperature)).filter(|(p, _)| **p > 0.0);
            let divergence: f64 = terms.map(|(p, log)| p * (p.ln() - log)).sum();
            ((1.0 - share) * temperature.powi(2) * divergence + share * hard, hard)
        });
        let (losses, hard) = losses.unzip();
        [losses, hard]
    }

    /// The gradient of the sum of the losses, each times its weight.
    pub(super) fn backward(
        logits: &[f64],
        labels: &[u32],
        teacher: &[f64],
        weights: &[f64],
        of: Distillation,
    ) -> Vec<f64> {
        let vocabulary = logits.len() / labels.len();
        let (temperature, share) = (f64::from(of.temperature), f64::from(of.hard_label_share));
        let mut gradient = Vec::with_capacity(logits.len());
        for (at, row) in logits.chunks_exact(vocabulary).enumerate() {
            let counted = if (labels[at] as usize) < vocabulary { weights[at] } else { 0.0 };
            let (soft, hard) = (log_softmax(row, temperature), log_softmax(row, 1.0));
            gradient.extend((0..vocabulary).map(|j| {
                let one_hot = f64::from(j == labels[at] as usize);
                let by_teacher = temperature * (soft[j].exp() - teacher[at * vocabulary + j]);
                counted * ((1.0 - share) * by_teacher + share * (hard[j].exp() - one_hot))
            }));
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cross_entropy;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    /// Tokens and probabilities of a teacher for each row: `top_k` places, some of them free, and the probability of every token.
    struct Teacher {
        ids: Vec<u32>,
        probabilities: Vec<f64>,
        dense: Vec<f64>,
    }

    fn teacher(lab: &mut Lab, rows: usize, vocabulary: usize, top_k: usize) -> Teacher {
        let mut made = Teacher { ids: Vec::new(), probabilities: Vec::new(), dense: vec![0.0; rows * vocabulary] };
        for row in 0..rows {
            let count = top_k.min(vocabulary).saturating_sub(row % 3).max(1);
            let mut ids: Vec<u32> = Vec::new();
            while ids.len() < count {
                // Neighbors are frequent, so that several share a vector.
                let next =
                    ids.last().map_or(lab.index(vocabulary), |last| (*last as usize + 1 + lab.index(3)) % vocabulary);
                match ids.contains(&(next as u32)) {
                    true => ids.extend((0..vocabulary as u32).find(|id| !ids.contains(id))),
                    false => ids.push(next as u32),
                }
            }
            ids.sort_unstable();
            let raw: Vec<f64> = lab.normal(count).iter().map(|x| (2.0 * x).exp()).collect();
            let sum: f64 = raw.iter().sum();
            for (at, id) in ids.iter().enumerate() {
                let p = f64::from((raw[at] / sum) as f32);
                made.probabilities.push(p);
                made.dense[row * vocabulary + *id as usize] = p;
            }
            made.ids.extend(ids);
            made.ids.resize((row + 1) * top_k, NO_ROW);
            made.probabilities.resize((row + 1) * top_k, 0.0);
        }
        made
    }

    const LOSSES: [(f32, f32); 4] = [(1.0, 0.0), (2.0, 0.0), (0.5, 0.3), (4.0, 0.75)];

    #[test]
    fn losses_and_gradients_equal_the_twin() {
        for (rows, vocabulary) in shapes(&[(1, 1), (3, 7), (5, 64), (17, 300), (2, 5001)]) {
            for (case, range) in LogitRange::ALL.into_iter().enumerate() {
                for cpu in [false, true] {
                    let (temperature, hard_label_share) = LOSSES[(case + usize::from(cpu)) % 4];
                    let top_k = [1, 3, 8, 40][(case + rows) % 4];
                    let of = Distillation { top_k: top_k as u32, temperature, hard_label_share };
                    let mut lab = Lab::for_cpu(cpu);
                    let spread = if case % 2 == 0 { 1.0 } else { 20.0 };
                    let logits: Vec<f64> =
                        lab.normal(rows * vocabulary).iter().map(|z| f64::from((spread * (z + 2.0)) as f32)).collect();
                    let teacher = teacher(&mut lab, rows, vocabulary, top_k);
                    let mut labels: Vec<u32> = (0..rows).map(|_| lab.index(vocabulary) as u32).collect();
                    if rows > 2 {
                        labels[1] = NO_ROW;
                    }
                    let [kept, replaced] = [(); 2].map(|()| lab.matrix(rows, vocabulary, &logits));
                    let [losses, hard, same, again] = [(); 4].map(|()| lab.vector(&vec![f64::NAN; rows]));
                    let weights: Vec<f64> = lab.normal(rows);
                    let targets = Targets {
                        labels: lab.words(&labels),
                        label_weights: lab.vector(&weights),
                        ids: lab.words(&teacher.ids),
                        probabilities: lab.vector(&teacher.probabilities),
                    };
                    let mut rec = lab.recorder();
                    forward_backward(&mut rec, (kept, range), targets, of, [losses, hard], false);
                    forward_backward(&mut rec, (replaced, range), targets, of, [same, again], true);
                    lab.run(&rec);
                    let shown = cross_entropy::twin::shown(&logits, range);
                    let [want, want_hard] = twin::forward(&shown, &labels, &teacher.dense, of);
                    assert_close("losses", &lab.read_vector(losses)[..rows], &want, 1e-5);
                    assert_close("losses by labels", &lab.read_vector(hard)[..rows], &want_hard, 1e-5);
                    assert_eq!(
                        lab.read_vector(losses)[..rows],
                        lab.read_vector(same)[..rows],
                        "losses with the gradient"
                    );
                    assert_close("logits", &lab.read(kept), &logits, 1e-7);
                    let by_shown = twin::backward(&shown, &labels, &teacher.dense, &weights, of);
                    let gradient = cross_entropy::twin::through_range(&by_shown, &shown, range);
                    assert_close("gradient", &lab.read(replaced), &gradient, 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_teacher_that_is_certain_of_the_label_gives_the_cross_entropy() {
        let (rows, vocabulary) = (9, 130);
        for (range, cpu) in LogitRange::ALL.into_iter().zip([false, true, false, true]) {
            let mut lab = Lab::for_cpu(cpu);
            let logits: Vec<f64> = lab.normal(rows * vocabulary);
            let labels: Vec<u32> = (0..rows).map(|_| lab.index(vocabulary) as u32).collect();
            let [a, b] = [(); 2].map(|()| lab.matrix(rows, vocabulary, &logits));
            let [losses, hard, plain] = [(); 3].map(|()| lab.vector(&vec![f64::NAN; rows]));
            let weights: Vec<f64> = lab.normal(rows);
            let (ids, label_weights) = (lab.words(&labels), lab.vector(&weights));
            let targets = Targets { labels: ids, label_weights, ids, probabilities: lab.vector(&vec![1.0; rows]) };
            let of = Distillation { top_k: 1, temperature: 1.0, hard_label_share: 0.0 };
            let mut rec = lab.recorder();
            forward_backward(&mut rec, (a, range), targets, of, [losses, hard], true);
            cross_entropy::forward_backward(&mut rec, (b, range), ids, label_weights, plain, true);
            lab.run(&rec);
            let numbers = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
            let want = numbers(lab.read_vector(plain)[..rows].to_vec());
            assert_close("losses", &lab.read_vector(losses)[..rows], &want, 1e-6);
            assert_eq!(lab.read_vector(hard)[..rows], lab.read_vector(plain)[..rows]);
            assert_close("gradient", &lab.read(a), &numbers(lab.read(b)), 1e-6);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_shows_in_its_loss() {
        for (cpu, poison) in [(false, f64::NAN), (true, f64::NAN), (false, f64::INFINITY), (true, f64::INFINITY)] {
            let mut lab = Lab::for_cpu(cpu);
            let mut values = lab.normal(2 * 50);
            values[70] = poison;
            let logits = lab.matrix(2, 50, &values);
            let [losses, hard] = [(); 2].map(|()| lab.vector(&[0.0; 2]));
            let ids = lab.words(&[1, 1]);
            let [label_weights, probabilities] = [(); 2].map(|()| lab.vector(&[1.0; 2]));
            let targets = Targets { labels: ids, label_weights, ids, probabilities };
            let of = Distillation { top_k: 1, temperature: 2.0, hard_label_share: 0.5 };
            let mut rec = lab.recorder();
            forward_backward(&mut rec, (logits, LogitRange::PLAIN), targets, of, [losses, hard], true);
            lab.run(&rec);
            let losses = lab.read_vector(losses);
            assert!(losses[0].is_finite() && !losses[1].is_finite(), "{losses:?}");
        }
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_loss() {
        let mut lab = Lab::new();
        let logits = lab.normal(3 * 6);
        let labels = [2, NO_ROW, 5];
        let weights = [0.5, 1.0, -2.0];
        let teacher = teacher(&mut lab, 3, 6, 3).dense;
        for (range, (temperature, hard_label_share)) in LogitRange::ALL.into_iter().zip(LOSSES) {
            let of = Distillation { top_k: 3, temperature, hard_label_share };
            let shown = cross_entropy::twin::shown(&logits, range);
            let by_shown = twin::backward(&shown, &labels, &teacher, &weights, of);
            assert_gradient(&logits, &cross_entropy::twin::through_range(&by_shown, &shown, range), |z| {
                let [losses, _] = twin::forward(&cross_entropy::twin::shown(z, range), &labels, &teacher, of);
                losses.into_iter().zip(weights).map(|(loss, weight)| loss * weight).sum::<f64>()
            });
        }
    }
}
