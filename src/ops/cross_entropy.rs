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
    struct SumParams {
        count: u32,
    }
}

/// A software adapter gets workgroups of one vector: it would switch between several vectors at each barrier.
fn kernel(cpu: bool, gradient: bool) -> Kernel {
    Kernel::new::<elementwise::Params>("cross_entropy", include_str!("../../shaders/cross_entropy.wgsl"))
        .part(REDUCE)
        .constant("WG_SIZE", if cpu { 8 } else { 256 })
        .constant("GRADIENT", gradient)
}

fn sum_kernel() -> Kernel {
    Kernel::new::<SumParams>("sum_losses", include_str!("../../shaders/sum_losses.wgsl"))
        .part(REDUCE)
        .constant("WG_SIZE", SUM_WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false, false), kernel(false, true), kernel(true, false), kernel(true, true), sum_kernel()]
}

/// Computes the losses of the rows of `logits`, `[rows, vocabulary]`, without their weights. With `with_gradient` the gradient of
/// `sum(losses * label_weights)` replaces the logits.
///
/// `labels` is one u32 per row, where [`NO_ROW`] (or any value outside the vocabulary) gives loss and gradient 0. `label_weights` and
/// `losses` are one f32 per row; `losses` lies in a buffer of its own.
pub fn forward_backward(
    rec: &mut Recorder,
    logits: Matrix,
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
    let kernel = kernel(rec.capabilities.cpu, with_gradient);
    let work = 8 * elementwise::elements(logits);
    rec.dispatch("cross_entropy", kernel, &views, &elementwise::params(logits), groups, work);
}

/// `total[0] += losses[0] + ... + losses[count - 1]`, in a fixed order.
pub fn sum_losses(rec: &mut Recorder, losses: View, count: u32, total: View) {
    assert!(losses.bytes >= 4 * u64::from(count), "{losses:?} for {count} losses");
    let params = SumParams { count };
    rec.dispatch("sum_losses", sum_kernel(), &[losses, total], &params, [1, 1, 1], u64::from(count));
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(test)]
pub(crate) mod twin {
    pub(crate) fn forward(logits: &[f64], labels: &[u32], vocabulary: usize) -> Vec<f64> {
        let loss = |(row, label): (&[f64], &u32)| {
            let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| (z - highest).exp()).sum();
            row.get(*label as usize).map_or(0.0, |z| sum.ln() + highest - z)
        };
        logits.chunks_exact(vocabulary).zip(labels).map(loss).collect()
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
            for (cpu, spread) in [(false, 1.0), (true, 1.0), (false, 40.0), (true, 40.0)] {
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
                forward_backward(&mut rec, kept, device_labels, device_weights, losses, false);
                forward_backward(&mut rec, replaced, device_labels, device_weights, same, true);
                sum_losses(&mut rec, losses, rows as u32, total);
                lab.run(&rec);
                let want = twin::forward(&logits, &labels, vocabulary);
                assert_close("losses", &lab.read_vector(losses)[..rows], &want, 1e-5);
                assert_eq!(lab.read_vector(losses)[..rows], lab.read_vector(same)[..rows], "losses with the gradient");
                assert_close("logits", &lab.read(kept), &logits, 1e-7);
                let gradient = twin::backward(&logits, &labels, vocabulary, &weights);
                assert_close("gradient", &lab.read(replaced), &gradient, 1e-5);
                assert_close("total", &lab.read_vector(total)[..2], &[1.5 + want.iter().sum::<f64>(), -1.0], 1e-5);
            }
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
            forward_backward(&mut rec, logits, labels, weights, losses, true);
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
        let gradient = twin::backward(&logits, &labels, 6, &weights);
        let weighted = |(loss, weight): (f64, f64)| loss * weight;
        assert_gradient(&logits, &gradient, |z| {
            twin::forward(z, &labels, 6).into_iter().zip(weights).map(weighted).sum::<f64>()
        });
    }
}
