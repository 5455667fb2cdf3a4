//! Softmax cross-entropy of a chunk of rows: `loss = log(sum_j exp(z_j)) - z_label`, and in its place the gradient
//! `dz_j = (softmax(z)_j - [j = label]) * weight`, with a weight for each row.
//!
//! Only the logits of one chunk exist at a time (Hsu et al. 2024, "Liger Kernel"). The head's frozen weights need no gradient, so that
//! the gradient of the logits is computed in the forward pass and used at once. The maximum and the sum are computed in one pass (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax").

use super::elementwise;
use super::lib_parts::REDUCE;
pub use super::rows::{NO_ROW, gather_rows, scatter_rows};
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

const SUM_WG_SIZE: u32 = 256;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        logit_scale: f32,
        cap: f32,
    }
}

params! {
    struct SumParams {
        count: u32,
    }
}

/// The factor and the bound of the logits: `z` becomes `cap * tanh(scale * z / cap)`, or `scale * z` without a bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitRange {
    /// The factor.
    pub scale: f32,
    /// The bound, above 0.
    pub cap: Option<f32>,
}

impl LogitRange {
    /// Logits as the head computes them.
    pub const PLAIN: Self = Self { scale: 1.0, cap: None };

    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        kernel
            .constant("SCALED", self.scale != 1.0)
            .constant("CAPPED", self.cap.is_some())
            .part(shader!("lib/logits.wgsl"))
    }

    fn params(self, logits: Matrix) -> Params {
        let (rows, cols, ld) = (logits.rows, logits.cols, logits.ld);
        Params { rows, cols, ld, logit_scale: self.scale, cap: self.cap.unwrap_or(1.0) }
    }

    /// One range of each kind.
    pub(super) const KINDS: [Self; 4] = [
        Self::PLAIN,
        Self { scale: 2.0, cap: None },
        Self { scale: 1.0, cap: Some(1.0) },
        Self { scale: 2.0, cap: Some(1.0) },
    ];

    #[cfg(test)]
    pub(super) const ALL: [Self; 4] = [
        Self::PLAIN,
        Self { scale: 0.25, cap: None },
        Self { scale: 1.0, cap: Some(3.0) },
        Self { scale: 1.5, cap: Some(2.0) },
    ];
}

/// The variants of the kernel of a loss.
#[derive(Clone, Copy)]
pub(super) struct LossVariant {
    /// True on a software adapter, which gets workgroups of one vector: it would switch between several vectors at each barrier.
    pub cpu: bool,
    /// True where the gradient replaces the logits.
    pub gradient: bool,
    pub range: LogitRange,
}

impl LossVariant {
    /// Joins the parts and constants of a loss with its kernel.
    pub(super) fn join(self, kernel: Kernel) -> Kernel {
        self.range
            .join(kernel)
            .part(shader!("lib/logit_rows.wgsl"))
            .part(REDUCE)
            .constant("WG_SIZE", if self.cpu { 8 } else { 256 })
            .constant("GRADIENT", self.gradient)
    }

    /// One variant of each kind.
    pub(super) fn kinds() -> impl Iterator<Item = Self> {
        let flags = [(false, false), (false, true), (true, false), (true, true)];
        let of_range = move |range| flags.map(|(cpu, gradient)| Self { cpu, gradient, range });
        LogitRange::KINDS.into_iter().flat_map(of_range)
    }
}

fn kernel(variant: LossVariant) -> Kernel {
    variant.join(Kernel::new::<Params>("cross_entropy", shader!("cross_entropy.wgsl")))
}

fn range_kernel(range: LogitRange) -> Kernel {
    range.join(elementwise::kernel::<Params>("shown_logits", shader!("shown_logits.wgsl")))
}

fn sum_kernel() -> Kernel {
    Kernel::new::<SumParams>("sum_losses", shader!("sum_losses.wgsl")).part(REDUCE).constant("WG_SIZE", SUM_WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let losses = LossVariant::kinds().map(kernel);
    losses.chain(LogitRange::KINDS[1..].iter().map(|range| range_kernel(*range))).chain([sum_kernel()]).collect()
}

/// Scales and bounds logits `[rows, vocabulary]` in place.
pub fn apply_range(rec: &mut Recorder, logits: Matrix, range: LogitRange) {
    if range != LogitRange::PLAIN {
        let (groups, work) = (elementwise::workgroups(rec, logits), 4 * elementwise::elements(logits));
        rec.dispatch("shown_logits", range_kernel(range), &[logits.view], &range.params(logits), groups, work);
    }
}

/// Computes the losses of the rows of `logits`, `[rows, vocabulary]` as the head computes them, without their weights. The losses are
/// those of the logits in their range. With `with_gradient` the gradient of `sum(losses * label_weights)` replaces the logits.
///
/// `labels` is one u32 per row, where [`NO_ROW`] (or any value outside the vocabulary) gives loss and gradient 0. `label_weights` and
/// `losses` are one f32 per row; `losses` lies in a buffer of its own.
pub fn forward_backward(
    rec: &mut Recorder,
    (logits, range): (Matrix, LogitRange),
    labels: View,
    label_weights: View,
    losses: View,
    with_gradient: bool,
) {
    let bytes = 4 * u64::from(logits.rows);
    let enough = [labels, label_weights, losses].iter().all(|view| view.bytes >= bytes);
    assert!(enough, "{labels:?}, {label_weights:?}, {losses:?} for {} rows", logits.rows);
    let groups = rec.fold(u64::from(logits.rows));
    let views = [labels, label_weights, losses, logits.view];
    let kernel = kernel(LossVariant { cpu: rec.capabilities.cpu, gradient: with_gradient, range });
    let work = 8 * elementwise::elements(logits);
    rec.dispatch("cross_entropy", kernel, &views, &range.params(logits), groups, work);
}

/// `total[0] += losses[0] + ... + losses[count - 1]`, in a fixed order.
pub fn sum_losses(rec: &mut Recorder, losses: View, count: u32, total: View) {
    assert!(losses.bytes >= 4 * u64::from(count), "{losses:?} for {count} losses");
    let params = SumParams { count };
    rec.dispatch("sum_losses", sum_kernel(), &[losses, total], &params, [1, 1, 1], u64::from(count));
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn forward(logits: &[f64], labels: &[u32], vocabulary: usize) -> Vec<f64> {
        let loss = |(row, label): (&[f64], &u32)| {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| (z - highest).exp()).sum();
            row.get(*label as usize).map_or(0.0, |z| sum.ln() + highest - z)
        };
        logits.chunks_exact(vocabulary).zip(labels).map(loss).collect()
    }

    /// Scaled and bounded logits.
    pub(crate) fn shown(logits: &[f64], range: super::LogitRange) -> Vec<f64> {
        let scaled = logits.iter().map(|z| f64::from(range.scale) * z);
        scaled.map(|z| range.cap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())).collect()
    }

    /// The gradient by logits from that by the shown ones: times `scale (1 - tanh^2)`.
    pub(crate) fn through_range(gradient: &[f64], shown: &[f64], range: super::LogitRange) -> Vec<f64> {
        let slope = |z: &f64| range.cap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2)) * f64::from(range.scale);
        gradient.iter().zip(shown).map(|(d, z)| d * slope(z)).collect()
    }

    /// The gradient of the sum of the losses, each times its weight.
    pub(crate) fn backward(logits: &[f64], labels: &[u32], vocabulary: usize, weights: &[f64]) -> Vec<f64> {
        let mut gradient = vec![0.0; logits.len()];
        let rows = logits.chunks_exact(vocabulary).zip(gradient.chunks_exact_mut(vocabulary));
        let labeled = rows.zip(labels).zip(weights).filter(|((_, label), _)| (**label as usize) < vocabulary);
        for (((row, gradient), label), weight) in labeled {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| (z - highest).exp()).sum();
            for (j, (g, z)) in gradient.iter_mut().zip(row).enumerate() {
                let one_hot = f64::from(j == *label as usize);
                *g = weight * ((z - highest).exp() / sum - one_hot);
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn losses_and_gradients_equal_the_twin() {
        for (rows, vocabulary) in shapes(&[(1, 1), (3, 7), (5, 64), (17, 300), (2, 5001)]) {
            let kinds = [(false, 1.0), (true, 1.0), (false, 40.0), (true, 40.0)];
            for ((cpu, spread), range) in kinds.into_iter().flat_map(|kind| LogitRange::ALL.map(|range| (kind, range)))
            {
                let mut lab = Lab::for_cpu(cpu);
                let logits: Vec<f64> =
                    lab.normal(rows * vocabulary).iter().map(|z| f64::from((spread * (z + 2.0)) as f32)).collect();
                let mut labels: Vec<u32> = (0..rows).map(|_| lab.index(vocabulary) as u32).collect();
                if rows > 2 {
                    labels[1] = NO_ROW;
                }
                let [kept, replaced] = [(); 2].map(|()| lab.matrix(rows, vocabulary, &logits));
                let [losses, same] = [(); 2].map(|()| lab.vector(&vec![f64::NAN; rows]));
                let weights: Vec<f64> = lab.normal(rows);
                let (device_labels, device_weights, total) =
                    (lab.words(&labels), lab.vector(&weights), lab.vector(&[1.5, -1.0]));
                let mut rec = lab.recorder();
                forward_backward(&mut rec, (kept, range), device_labels, device_weights, losses, false);
                forward_backward(&mut rec, (replaced, range), device_labels, device_weights, same, true);
                sum_losses(&mut rec, losses, rows as u32, total);
                lab.run(&rec);
                let shown = twin::shown(&logits, range);
                let want = twin::forward(&shown, &labels, vocabulary);
                assert_close("losses", &lab.read_vector(losses)[..rows], &want, 1e-5);
                assert_eq!(lab.read_vector(losses)[..rows], lab.read_vector(same)[..rows], "losses with the gradient");
                assert_close("logits", &lab.read(kept), &logits, 1e-7);
                let by_shown = twin::backward(&shown, &labels, vocabulary, &weights);
                let gradient = twin::through_range(&by_shown, &shown, range);
                assert_close("gradient", &lab.read(replaced), &gradient, 1e-5);
                assert_close("total", &lab.read_vector(total)[..2], &[1.5 + want.iter().sum::<f64>(), -1.0], 1e-5);
            }
        }
    }

    #[test]
    fn logits_are_scaled_and_bounded() {
        for range in LogitRange::ALL.into_iter().skip(1) {
            let mut lab = Lab::new();
            let logits: Vec<f64> = lab.normal(5 * 37).iter().map(|z| f64::from((60.0 * z) as f32)).collect();
            let shown = lab.matrix(5, 37, &logits);
            let mut rec = lab.recorder();
            apply_range(&mut rec, shown, range);
            lab.run(&rec);
            assert_close(&format!("{range:?}"), &lab.read(shown), &twin::shown(&logits, range), 1e-6);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_shows_in_its_loss() {
        for (cpu, poison) in [(false, f64::NAN), (true, f64::NAN), (false, f64::INFINITY), (true, f64::INFINITY)] {
            let mut lab = Lab::for_cpu(cpu);
            let mut values = lab.normal(2 * 50);
            values[70] = poison;
            let logits = lab.matrix(2, 50, &values);
            let (labels, weights, losses) = (lab.words(&[1, 1]), lab.vector(&[1.0; 2]), lab.vector(&[0.0; 2]));
            let mut rec = lab.recorder();
            forward_backward(&mut rec, (logits, LogitRange::PLAIN), labels, weights, losses, true);
            lab.run(&rec);
            let losses = lab.read_vector(losses);
            assert!(losses[0].is_finite() && !losses[1].is_finite(), "{losses:?}");
        }
    }

    #[test]
    fn many_losses_are_summed() {
        let mut lab = Lab::new();
        let values = lab.normal(1000);
        let (losses, total) = (lab.vector(&values), lab.vector(&[0.0]));
        let mut rec = lab.recorder();
        sum_losses(&mut rec, losses, 999, total);
        lab.run(&rec);
        let want: f64 = values[..999].iter().sum();
        assert_close("total", &lab.read_vector(total)[..1], &[want], 1e-5);
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_loss() {
        let mut lab = Lab::new();
        let logits = lab.normal(3 * 6);
        let labels = [2, NO_ROW, 5];
        let weights = [0.5, 1.0, -2.0];
        let weighted = |(loss, weight): (f64, f64)| loss * weight;
        for range in LogitRange::ALL {
            let shown = twin::shown(&logits, range);
            let gradient = twin::through_range(&twin::backward(&shown, &labels, 6, &weights), &shown, range);
            assert_gradient(&logits, &gradient, |z| {
                let losses = twin::forward(&twin::shown(z, range), &labels, 6);
                losses.into_iter().zip(weights).map(weighted).sum::<f64>()
            });
        }
    }
}
