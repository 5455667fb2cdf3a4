//! RMSNorm (Zhang and Sennrich 2019): `y_i = g_i x_i / sqrt(mean(x^2) + eps)` over each row.
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
    }
}

fn forward_kernel(cpu: bool, add: bool) -> Kernel {
    Kernel::new::<Params>("rms_norm", include_str!("../../shaders/rms_norm.wgsl"))
        .part(MASK_TAIL)
        .part(REDUCE)
        .constant("WG_SIZE", wg_size(cpu))
        .constant("ADD", add)
}

fn backward_kernel(cpu: bool, accumulate: bool) -> Kernel {
    Kernel::new::<Params>("rms_norm_backward", include_str!("../../shaders/rms_norm_backward.wgsl"))
        .part(MASK_TAIL)
        .part(REDUCE)
        .constant("WG_SIZE", wg_size(cpu))
        .constant("ACCUMULATE", accumulate)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let variants = [(false, false), (false, true), (true, false), (true, true)];
    variants.into_iter().flat_map(|(cpu, flag)| [forward_kernel(cpu, flag), backward_kernel(cpu, flag)]).collect()
}

fn params(x: Matrix, eps: f32) -> Params {
    Params { rows: x.rows, cols: x.cols, ld4: x.ld / 4, eps }
}

fn work(x: Matrix) -> u64 {
    4 * u64::from(x.rows) * u64::from(x.cols)
}

/// `y = norm(x) * gain`; x and y are `[rows, cols]`, gain `[cols]`.
pub fn forward(rec: &mut Recorder, x: Matrix, gain: View, eps: f32, y: Matrix) {
    assert_alike(&[x, y]);
    let groups = rec.fold(u64::from(x.rows));
    let views = [x.view, rec.unused, gain, rec.unused_write, y.view];
    rec.dispatch("rms_norm", forward_kernel(rec.capabilities.cpu, false), &views, &params(x, eps), groups, work(x));
}

/// `sum = x + delta; y = norm(sum) * gain`, the residual connection and the norm after it in one pass. All matrices are
/// `[rows, cols]`, gain `[cols]`.
pub fn forward_add(rec: &mut Recorder, x: Matrix, delta: Matrix, gain: View, eps: f32, sum: Matrix, y: Matrix) {
    assert_alike(&[x, delta, sum, y]);
    let groups = rec.fold(u64::from(x.rows));
    let views = [x.view, delta.view, gain, sum.view, y.view];
    rec.dispatch("rms_norm", forward_kernel(rec.capabilities.cpu, true), &views, &params(x, eps), groups, work(x));
}

/// The input gradient from the norm's input `x` and from `dy`, added to `dx` when `accumulate`. All matrices are `[rows, cols]`.
pub fn backward(rec: &mut Recorder, x: Matrix, gain: View, eps: f32, dy: Matrix, dx: Matrix, accumulate: bool) {
    assert_alike(&[x, dy, dx]);
    let groups = rec.fold(u64::from(x.rows));
    let views = [x.view, gain, dy.view, dx.view];
    rec.dispatch(
        "rms_norm_backward",
        backward_kernel(rec.capabilities.cpu, accumulate),
        &views,
        &params(x, eps),
        groups,
        2 * work(x),
    );
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(test)]
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

    #[test]
    fn forward_equals_the_twin_with_and_without_a_residual() {
        let shapes = shapes(&[(1, 1), (3, 7), (5, 64), (17, 300), (70, 129)]);
        for (cpu, (rows, cols)) in [false, true].into_iter().flat_map(|cpu| shapes.iter().map(move |s| (cpu, *s))) {
            let mut lab = Lab::for_cpu(cpu);
            let (x, delta, gain) = (lab.normal(rows * cols), lab.normal(rows * cols), lab.normal(cols));
            let (gx, gdelta, ggain) = (lab.matrix(rows, cols, &x), lab.matrix(rows, cols, &delta), lab.vector(&gain));
            let (y, sum, y_add) = (lab.empty(rows, cols), lab.empty(rows, cols), lab.empty(rows, cols));
            let mut rec = lab.recorder();
            forward(&mut rec, gx, ggain, EPS, y);
            forward_add(&mut rec, gx, gdelta, ggain, EPS, sum, y_add);
            lab.run(&rec);
            assert_close("y", &lab.read(y), &twin::forward(&x, &gain, f64::from(EPS)), 1e-5);
            let total: Vec<f64> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
            assert_close("sum", &lab.read(sum), &total, 1e-6);
            assert_close("y after sum", &lab.read(y_add), &twin::forward(&total, &gain, f64::from(EPS)), 1e-5);
        }
    }

    #[test]
    fn backward_equals_the_twin_and_accumulates() {
        let shapes = shapes(&[(1, 2), (4, 9), (33, 172), (8, 257)]);
        for (cpu, (rows, cols)) in [false, true].into_iter().flat_map(|cpu| shapes.iter().map(move |s| (cpu, *s))) {
            let mut lab = Lab::for_cpu(cpu);
            let (x, gain) = (lab.normal(rows * cols), lab.normal(cols));
            let (dy, before) = (lab.normal(rows * cols), lab.normal(rows * cols));
            let (gx, ggain, gdy) = (lab.matrix(rows, cols, &x), lab.vector(&gain), lab.matrix(rows, cols, &dy));
            let (dx, added) = (lab.empty(rows, cols), lab.matrix(rows, cols, &before));
            let mut rec = lab.recorder();
            backward(&mut rec, gx, ggain, EPS, gdy, dx, false);
            backward(&mut rec, gx, ggain, EPS, gdy, added, true);
            lab.run(&rec);
            let want = twin::backward(&x, &gain, f64::from(EPS), &dy);
            assert_close("dx", &lab.read(dx), &want, 1e-5);
            let want: Vec<f64> = want.iter().zip(&before).map(|(a, b)| a + b).collect();
            assert_close("dx added", &lab.read(added), &want, 1e-5);
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
