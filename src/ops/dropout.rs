//! Dropout (Srivastava et al. 2014), inverted: `y = mask * x / (1 - p)`, each element kept with probability `1 - p`.
//!
//! The mask is a function of (seed of the step, site, element), drawn again in the backward pass and never stored.
//! Each place of the network has a site of its own; the seed changes with every micro-batch.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        site: u32,
        threshold: u32,
        scale: f32,
    }
}

fn kernel(add: bool) -> Kernel {
    elementwise::kernel::<Params>("dropout", shader!("dropout.wgsl"))
        .part(shader!("lib/counter_random.wgsl"))
        .constant("ADD", add)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false), kernel(true)]
}

/// The 32-bit finalizer with the least bias of Wellons' search ("lowbias32", 2018).
fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// 32 random bits; `counter_random.wgsl` is the same function on the device.
pub(super) fn draw(seed: u32, site: u32, index: u32) -> u32 {
    let key = scramble(seed.wrapping_add(0x9e37_79b9));
    scramble(scramble(index ^ key).wrapping_add(scramble(site.wrapping_add(key))))
}

/// The bound below which a draw drops its element.
fn threshold(p: f32) -> u32 {
    (f64::from(p) * (1u64 << 32) as f64) as u32
}

/// True if the dropout of probability `p` at `site` keeps element `index = row * cols + col`.
pub fn keep(seed: u32, site: u32, index: u32, p: f32) -> bool {
    draw(seed, site, index) >= threshold(p)
}

/// The values that determine a mask.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// The place in the network.
    pub site: u32,
    /// The probability that an element is dropped, in `[0, 1)`.
    pub p: f32,
    /// The seed of the step, one u32 on the device.
    pub seed: View,
}

fn record(rec: &mut Recorder, x: Matrix, y: Matrix, mask: Mask, factor: f32, add: bool) {
    let Mask { site, p, seed } = mask;
    elementwise::assert_alike(&[x, y]);
    assert!((0.0..1.0).contains(&p), "dropout with probability {p}");
    let params = Params {
        rows: x.rows,
        cols: x.cols,
        ld: x.ld,
        site,
        threshold: threshold(p),
        scale: (f64::from(factor) / (1.0 - f64::from(p))) as f32,
    };
    let groups = elementwise::workgroups(rec, x);
    rec.dispatch("dropout", kernel(add), &[x.view, seed, y.view], &params, groups, 4 * elementwise::elements(x));
}

/// `y = mask * x / (1 - p)`; x and y are `[rows, cols]`.
pub fn forward(rec: &mut Recorder, x: Matrix, y: Matrix, mask: Mask) {
    record(rec, x, y, mask, 1.0, false);
}

/// `dx += factor * mask * dy / (1 - p)` with the mask of the forward pass; dy and dx are `[rows, cols]`.
pub fn backward_add(rec: &mut Recorder, dy: Matrix, dx: Matrix, mask: Mask, factor: f32) {
    record(rec, dy, dx, mask, factor, true);
}

/// The formula in plain loops, in f64; its gradient is the same function of `dy`.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn forward(x: &[f64], seed: u32, site: u32, p: f32) -> Vec<f64> {
        let kept = |i: usize| f64::from(super::keep(seed, site, i as u32, p));
        x.iter().enumerate().map(|(i, v)| kept(i) * v / (1.0 - f64::from(p))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, shapes};

    #[test]
    fn both_directions_draw_the_mask_of_the_twin() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            for (p, seed, site) in [(0.1, 7, 3), (0.5, u32::MAX, 0), (0.0, 1, 9)] {
                let mut lab = Lab::new();
                let (x, before) = (lab.normal(rows * cols), lab.normal(rows * cols));
                let (device_x, dx) = (lab.matrix(rows, cols, &x), lab.matrix(rows, cols, &before));
                let y = lab.empty(rows, cols);
                let mask = Mask { site, p, seed: lab.words(&[seed]) };
                let mut rec = lab.recorder();
                forward(&mut rec, device_x, y, mask);
                backward_add(&mut rec, device_x, dx, mask, 0.5);
                lab.run(&rec);
                let want = twin::forward(&x, seed, site, p);
                assert_close("y", &lab.read(y), &want, 1e-6);
                let want: Vec<f64> = want.iter().zip(&before).map(|(a, b)| 0.5 * a + b).collect();
                assert_close("dx", &lab.read(dx), &want, 1e-6);
            }
        }
    }

    /// The share of indices for which both masks agree; `1 - 2 p (1 - p)` when they are independent.
    fn agreement(a: impl Fn(u32) -> bool, b: impl Fn(u32) -> bool) -> f64 {
        const DRAWS: u32 = 200_000;
        f64::from((0..DRAWS).filter(|i| a(*i) == b(*i)).count() as u32) / f64::from(DRAWS)
    }

    #[test]
    fn the_kept_share_is_that_of_the_probability() {
        for p in [0.0, 0.05, 0.1, 0.5, 0.9] {
            let share = agreement(|i| keep(1, 2, i, p), |_| true);
            assert!((share - (1.0 - f64::from(p))).abs() < 0.005, "{share} kept with {p}");
        }
    }

    #[test]
    fn masks_of_other_seeds_sites_and_neighbors_are_independent() {
        let p = 0.3;
        let mask = |seed, site, shift| move |i: u32| keep(seed, site, i + shift, p);
        for (name, other) in [
            ("seed", mask(6, 0, 0)),
            ("site", mask(5, 1, 0)),
            ("seed and site", mask(6, 1, 0)),
            ("neighbor", mask(5, 0, 1)),
            ("row below", mask(5, 0, 4096)),
        ] {
            let share = agreement(mask(5, 0, 0), other);
            assert!((share - 0.58).abs() < 0.01, "{name}: {share}");
        }
    }
}
