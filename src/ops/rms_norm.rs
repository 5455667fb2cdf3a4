//! RMSNorm (Zhang and Sennrich 2019): `y_i = g_i x_i / sqrt(mean(x^2) + eps)` over each row.
//!
//! A family may add a constant to every gain, `g_i = offset + gain_i`. The residual connection before a norm is computed with it:
//! `sum = x + r delta`, where delta may go through a norm of its own first.
//!
//! With `u = dy * g` and `s = 1 / sqrt(mean(x^2) + eps)`, the input gradient is `dx = s (u - x s^2 mean(u x))`.

use super::elementwise::assert_alike;
use super::lib_parts::{MASK_TAIL, REDUCE};
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// Invocations of a workgroup. A software adapter runs a workgroup as vectors that take turns at each barrier, so it gets one vector.
fn wg_size(cpu: bool) -> u32 {
    if cpu { 8 } else { 64 }
}

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld4: u32,
        eps: f32,
        gain_offset: f32,
        scale: f32,
    }
}

/// The constants of every norm of a network.
#[derive(Clone, Copy, Debug)]
pub struct NormConstants {
    /// The constant under the square root, above 0.
    pub eps: f32,
    /// The constant that is added to every gain.
    pub gain_offset: f32,
}

/// The addition to the residual stream before a norm.
#[derive(Clone, Copy, Debug)]
pub struct Residual {
    /// The residual stream, `[rows, cols]`.
    pub x: Matrix,
    /// The output of a block, `[rows, cols]`.
    pub delta: Matrix,
    /// The gains of the norm that delta goes through first, `[cols]`.
    pub delta_gain: Option<View>,
    /// The factor on delta.
    pub delta_scale: f32,
    /// `x + delta_scale * delta`, `[rows, cols]`.
    pub sum: Matrix,
}

#[derive(Clone, Copy)]
struct Variant {
    add: bool,
    post: bool,
    next: bool,
}

const VARIANTS: [Variant; 5] = [
    Variant { add: false, post: false, next: true },
    Variant { add: true, post: false, next: true },
    Variant { add: true, post: true, next: true },
    Variant { add: true, post: true, next: false },
    Variant { add: true, post: false, next: false },
];

fn forward_kernel(cpu: bool, Variant { add, post, next }: Variant) -> Kernel {
    Kernel::new::<Params>("rms_norm", shader!("rms_norm.wgsl"))
        .part(MASK_TAIL)
        .part(REDUCE)
        .constant("WG_SIZE", wg_size(cpu))
        .constant("ADD", add)
        .constant("POST", post)
        .constant("NEXT", next)
}

fn backward_kernel(cpu: bool, accumulate: bool) -> Kernel {
    Kernel::new::<Params>("rms_norm_backward", shader!("rms_norm_backward.wgsl"))
        .part(MASK_TAIL)
        .part(REDUCE)
        .constant("WG_SIZE", wg_size(cpu))
        .constant("ACCUMULATE", accumulate)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let forward = [false, true].into_iter().flat_map(|cpu| VARIANTS.map(|variant| forward_kernel(cpu, variant)));
    let backward = [(false, false), (false, true), (true, false), (true, true)];
    forward.chain(backward.map(|(cpu, accumulate)| backward_kernel(cpu, accumulate))).collect()
}

fn params(x: Matrix, norm: NormConstants, scale: f32) -> Params {
    Params { rows: x.rows, cols: x.cols, ld4: x.ld / 4, eps: norm.eps, gain_offset: norm.gain_offset, scale }
}

fn work(x: Matrix) -> u64 {
    4 * u64::from(x.rows) * u64::from(x.cols)
}

/// `y = norm(x)`; x and y are `[rows, cols]`, gain `[cols]`.
pub fn forward(rec: &mut Recorder, x: Matrix, gain: View, norm: NormConstants, y: Matrix) {
    assert_alike(&[x, y]);
    let groups = rec.fold(u64::from(x.rows));
    let views = [x.view, rec.unused, gain, rec.unused, rec.unused_write, y.view];
    let kernel = forward_kernel(rec.capabilities.cpu, VARIANTS[0]);
    rec.dispatch("rms_norm", kernel, &views, &params(x, norm, 1.0), groups, work(x));
}

/// Adds to the residual stream, and computes the norm that follows in the same pass: `next` has its gains, `[cols]`, and its result,
/// `[rows, cols]`. Without `next` the sum is all that is computed.
pub fn forward_add(rec: &mut Recorder, residual: Residual, next: Option<(View, Matrix)>, norm: NormConstants) {
    let Residual { x, delta, delta_gain, delta_scale, sum } = residual;
    assert_alike(&[x, delta, sum, next.map_or(sum, |(_, y)| y)]);
    let groups = rec.fold(u64::from(x.rows));
    let (gain, y) = next.map_or((rec.unused, rec.unused_write), |(gain, y)| (gain, y.view));
    let views = [x.view, delta.view, gain, delta_gain.unwrap_or(rec.unused), sum.view, y];
    let variant = Variant { add: true, post: delta_gain.is_some(), next: next.is_some() };
    let kernel = forward_kernel(rec.capabilities.cpu, variant);
    rec.dispatch("rms_norm", kernel, &views, &params(x, norm, delta_scale), groups, work(x));
}

/// The input gradient of a norm, from its input `x` and the gradient `dy_scale * dy` of its output.
#[derive(Clone, Copy, Debug)]
pub struct NormGradient {
    /// The norm's input, `[rows, cols]`.
    pub x: Matrix,
    /// The norm's gains, `[cols]`.
    pub gain: View,
    /// The gradient of the norm's output, but for its factor, `[rows, cols]`.
    pub dy: Matrix,
    /// The factor on `dy`.
    pub dy_scale: f32,
    /// The gradient of the norm's input, `[rows, cols]`.
    pub dx: Matrix,
    /// True to add to `dx` instead of replacing it.
    pub accumulate: bool,
}

/// Computes the input gradient of a norm.
pub fn backward(rec: &mut Recorder, gradient: NormGradient, norm: NormConstants) {
    let NormGradient { x, gain, dy, dy_scale, dx, accumulate } = gradient;
    assert_alike(&[x, dy, dx]);
    let groups = rec.fold(u64::from(x.rows));
    let views = [x.view, gain, dy.view, dx.view];
    let kernel = backward_kernel(rec.capabilities.cpu, accumulate);
    rec.dispatch("rms_norm_backward", kernel, &views, &params(x, norm, dy_scale), groups, 2 * work(x));
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn forward(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(gain.len()) {
            let mean_square = row.iter().map(|v| v * v).sum::<f64>() / gain.len() as f64;
            y.extend(row.iter().zip(gain).map(|(v, g)| g * v / (mean_square + eps).sqrt()));
        }
        y
    }

    pub(crate) fn backward(x: &[f64], gain: &[f64], eps: f64, dy: &[f64]) -> Vec<f64> {
        let n = gain.len() as f64;
        let mut dx = Vec::with_capacity(x.len());
        for (row, dy) in x.chunks_exact(gain.len()).zip(dy.chunks_exact(gain.len())) {
            let s = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / n + eps).sqrt();
            let u: Vec<f64> = dy.iter().zip(gain).map(|(d, g)| d * g).collect();
            let mean = row.iter().zip(&u).map(|(v, u)| v * u).sum::<f64>() / n;
            dx.extend(row.iter().zip(&u).map(|(v, u)| s * (u - v * s * s * mean)));
        }
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    const EPS: f32 = 1e-5;
    const OFFSETS: [f32; 2] = [0.0, 1.0];

    fn with_offset(gain: &[f64], offset: f32) -> Vec<f64> {
        gain.iter().map(|g| f64::from(offset) + g).collect()
    }

    #[test]
    fn forward_equals_the_twin_with_and_without_a_residual() {
        let shapes = shapes(&[(1, 1), (3, 7), (5, 64), (17, 300), (70, 129)]);
        for (cpu, (rows, cols)) in [false, true].into_iter().flat_map(|cpu| shapes.iter().map(move |s| (cpu, *s))) {
            for offset in OFFSETS {
                let mut lab = Lab::for_cpu(cpu);
                let norm = NormConstants { eps: EPS, gain_offset: offset };
                let (x, delta, gain) = (lab.normal(rows * cols), lab.normal(rows * cols), lab.normal(cols));
                let (gx, gdelta, ggain) =
                    (lab.matrix(rows, cols, &x), lab.matrix(rows, cols, &delta), lab.vector(&gain));
                let y = lab.empty(rows, cols);
                let mut rec = lab.recorder();
                forward(&mut rec, gx, ggain, norm, y);
                let mut results = Vec::new();
                for (post, next) in [(false, true), (true, true), (true, false), (false, false)] {
                    let (sum, y) = (lab.empty(rows, cols), lab.empty(rows, cols));
                    let delta_gain = post.then_some(ggain);
                    let residual = Residual { x: gx, delta: gdelta, delta_gain, delta_scale: 0.75, sum };
                    forward_add(&mut rec, residual, next.then_some((ggain, y)), norm);
                    results.push((post, next, sum, y));
                }
                lab.run(&rec);
                let gain = with_offset(&gain, offset);
                assert_close("y", &lab.read(y), &twin::forward(&x, &gain, f64::from(EPS)), 1e-5);
                for (post, next, sum, y) in results {
                    let normed = twin::forward(&delta, &gain, f64::from(EPS));
                    let added = if post { &normed } else { &delta };
                    let total: Vec<f64> = x.iter().zip(added).map(|(a, b)| a + 0.75 * b).collect();
                    assert_close("sum", &lab.read(sum), &total, 2e-6);
                    if next {
                        let want = twin::forward(&total, &gain, f64::from(EPS));
                        assert_close("y after sum", &lab.read(y), &want, 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_equals_the_twin_and_accumulates() {
        let shapes = shapes(&[(1, 2), (4, 9), (33, 172), (8, 257)]);
        for (cpu, (rows, cols)) in [false, true].into_iter().flat_map(|cpu| shapes.iter().map(move |s| (cpu, *s))) {
            for offset in OFFSETS {
                let mut lab = Lab::for_cpu(cpu);
                let norm = NormConstants { eps: EPS, gain_offset: offset };
                let (x, gain) = (lab.normal(rows * cols), lab.normal(cols));
                let (dy, before) = (lab.normal(rows * cols), lab.normal(rows * cols));
                let (gx, ggain, gdy) = (lab.matrix(rows, cols, &x), lab.vector(&gain), lab.matrix(rows, cols, &dy));
                let (dx, added) = (lab.empty(rows, cols), lab.matrix(rows, cols, &before));
                let mut rec = lab.recorder();
                let gradient = NormGradient { x: gx, gain: ggain, dy: gdy, dy_scale: 0.25, dx, accumulate: false };
                backward(&mut rec, gradient, norm);
                backward(&mut rec, NormGradient { dx: added, accumulate: true, ..gradient }, norm);
                lab.run(&rec);
                let dy: Vec<f64> = dy.iter().map(|d| 0.25 * d).collect();
                let want = twin::backward(&x, &with_offset(&gain, offset), f64::from(EPS), &dy);
                assert_close("dx", &lab.read(dx), &want, 1e-5);
                let want: Vec<f64> = want.iter().zip(&before).map(|(a, b)| a + b).collect();
                assert_close("dx added", &lab.read(added), &want, 1e-5);
            }
        }
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_forward() {
        let mut lab = Lab::new();
        let (x, gain, dy) = (lab.normal(3 * 5), lab.normal(5), lab.normal(3 * 5));
        let dx = twin::backward(&x, &gain, 1e-5, &dy);
        assert_gradient(&x, &dx, |x| twin::forward(x, &gain, 1e-5).iter().zip(&dy).map(|(y, d)| y * d).sum());
    }
}
