//! Noise on embeddings in training (Jain et al. 2023, NEFTune): `y += size u`, with u uniform in `[-1, 1)`.
//!
//! As dropout's masks, the noise is a function of (seed of the step, site, element) and never stored. Its gradient is 0.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// A site that no dropout mask has.
const SITE: u32 = u32::MAX;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        site: u32,
    }
}

fn kernel() -> Kernel {
    elementwise::kernel::<Params>("noise", shader!("noise.wgsl")).part(shader!("lib/counter_random.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel()]
}

/// Adds noise to `y [rows, cols]`; `draws` holds the seed of the step, u32, and the size of the noise, f32.
pub fn add(rec: &mut Recorder, draws: View, y: Matrix) {
    assert!(draws.bytes >= 8, "{draws:?} for a seed and a size");
    let params = Params { rows: y.rows, cols: y.cols, ld: y.ld, site: SITE };
    let groups = elementwise::workgroups(rec, y);
    rec.dispatch("noise", kernel(), &[draws, y.view], &params, groups, 4 * elementwise::elements(y));
}

/// The formula in plain loops, in f64.
#[cfg(test)]
pub(crate) mod twin {
    use crate::ops::dropout::draw;

    pub(crate) fn noise(count: usize, seed: u32, size: f32) -> Vec<f64> {
        let unit = |i: usize| f64::from(draw(seed, super::SITE, i as u32) >> 8) / f64::from(1u32 << 23) - 1.0;
        (0..count).map(|i| f64::from(size) * unit(i)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, shapes};

    #[test]
    fn the_noise_is_that_of_the_twin() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            for (seed, size) in [(7, 0.5f32), (u32::MAX, 0.01)] {
                let mut lab = Lab::new();
                let before = lab.normal(rows * cols);
                let y = lab.matrix(rows, cols, &before);
                let draws = lab.words(&[seed, size.to_bits()]);
                let mut rec = lab.recorder();
                add(&mut rec, draws, y);
                lab.run(&rec);
                let noise = twin::noise(rows * cols, seed, size);
                let want: Vec<f64> = noise.iter().zip(&before).map(|(noise, before)| noise + before).collect();
                assert_close("y", &lab.read(y), &want, 1e-6);
            }
        }
    }

    #[test]
    fn draws_are_uniform_between_both_bounds() {
        let noise = twin::noise(100_000, 3, 2.0);
        let mean = noise.iter().sum::<f64>() / 1e5;
        let variance = noise.iter().map(|v| v * v).sum::<f64>() / 1e5;
        let (least, most) = noise.iter().fold((0.0f64, 0.0f64), |(a, b), v| (a.min(*v), b.max(*v)));
        assert!(mean.abs() < 0.02 && (variance / (4.0 / 3.0) - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!(least >= -2.0 && most < 2.0 && least < -1.99 && most > 1.99, "{least} {most}");
        assert_ne!(noise[..10], twin::noise(10, 4, 2.0));
    }
}
