//! Gradients of vectors that every row shares: of a bias, `db_j = sum_r dy_rj`, and of RMSNorm's gain (Zhang and Sennrich 2019),
//! `dg_j = sum_r dy_rj x_rj / sqrt(mean(x_r^2) + eps)`.
//!
//! As for the LoRA factors, each range of rows is summed by itself, and the sums are then added in order.

use super::elementwise::{assert_alike, elements};
use super::lib_parts::REDUCE;
use super::lora_gradient::{partial_bytes, splits, sum_splits};
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld4: u32,
        rows_per_split: u32,
    }

    struct ScaleParams {
        rows: u32,
        cols: u32,
        ld: u32,
        eps: f32,
    }
}

/// Invocations of a workgroup: one vector of a software adapter, one subgroup of a GPU.
fn wg_size(cpu: bool) -> u32 {
    if cpu { 8 } else { 64 }
}

fn kernel(cpu: bool, gain: bool) -> Kernel {
    Kernel::new::<Params>("column_gradient", shader!("column_gradient.wgsl"))
        .constant("WG_SIZE", wg_size(cpu))
        .constant("GAIN", gain)
}

fn scale_kernel(cpu: bool) -> Kernel {
    Kernel::new::<ScaleParams>("row_scale", shader!("row_scale.wgsl")).part(REDUCE).constant("WG_SIZE", wg_size(cpu))
}

pub(super) fn kernels() -> Vec<Kernel> {
    let all = |cpu| [kernel(cpu, false), kernel(cpu, true), scale_kernel(cpu)];
    [all(false), all(true)].concat()
}

/// Bytes of the partial sums of `cols` columns.
pub fn scratch_bytes(cols: u32) -> u64 {
    partial_bytes(1, cols, u32::MAX)
}

/// `gradient += sum of dy's rows`; dy is `[rows, cols]`, gradient `[cols]`.
pub fn bias(rec: &mut Recorder, dy: Matrix, gradient: View) {
    scaled_bias(rec, dy, 1.0, gradient);
}

/// `gradient += scale * sum of dy's rows`, of a bias that is multiplied by `scale`.
pub fn scaled_bias(rec: &mut Recorder, dy: Matrix, scale: f32, gradient: View) {
    record(rec, dy, None, scale, gradient);
}

/// Adds the gradient of the gain of a norm whose input was `x`; `scales` is a buffer for one f32 per row.
pub fn gain(rec: &mut Recorder, x: Matrix, eps: f32, dy: Matrix, scales: View, gradient: View) {
    assert_alike(&[x, dy]);
    assert!(scales.bytes >= 4 * u64::from(x.rows), "{scales:?} for {} rows", x.rows);
    let params = ScaleParams { rows: x.rows, cols: x.cols, ld: x.ld, eps };
    let groups = rec.fold(u64::from(x.rows));
    rec.dispatch("row_scale", scale_kernel(rec.capabilities.cpu), &[x.view, scales], &params, groups, elements(x));
    record(rec, dy, Some((x, scales)), 1.0, gradient);
}

fn record(rec: &mut Recorder, dy: Matrix, normed: Option<(Matrix, View)>, scale: f32, gradient: View) {
    let (rows_per_split, splits) = splits(dy.rows);
    let partials = View { bytes: scratch_bytes(dy.cols), ..rec.scratch.partials };
    assert!(partials.bytes <= rec.scratch.partials.bytes, "partial sums of {} columns", dy.cols);
    let params = Params { rows: dy.rows, cols: dy.cols, ld4: dy.ld / 4, rows_per_split };
    let (x, scales) = normed.map_or((rec.unused, rec.unused), |(x, scales)| (x.view, scales));
    let groups = [dy.cols.div_ceil(4 * wg_size(rec.capabilities.cpu)), splits, 1];
    let kernel = kernel(rec.capabilities.cpu, normed.is_some());
    rec.dispatch("column_gradient", kernel, &[dy.view, x, scales, partials], &params, groups, elements(dy));
    sum_splits(rec, "column_gradient", [1, dy.cols, splits], scale, partials, gradient, false);
}

/// The formulas in plain loops, in f64.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn bias(dy: &[f64], cols: usize) -> Vec<f64> {
        (0..cols).map(|j| dy.chunks_exact(cols).map(|row| row[j]).sum()).collect()
    }

    pub(crate) fn gain(x: &[f64], eps: f64, dy: &[f64], cols: usize) -> Vec<f64> {
        let mut gradient = vec![0.0; cols];
        for (x, dy) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)) {
            let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / cols as f64 + eps).sqrt();
            for (sum, (x, dy)) in gradient.iter_mut().zip(x.iter().zip(dy)) {
                *sum += dy * x * scale;
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rms_norm;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn both_equal_the_twins_and_accumulate() {
        let shapes = shapes(&[(1, 1), (3, 7), (64, 64), (2100, 33), (130, 300)]);
        for (cpu, (rows, cols)) in [false, true].into_iter().flat_map(|cpu| shapes.iter().map(move |s| (cpu, *s))) {
            let mut lab = Lab::for_cpu(cpu);
            let (x, dy, before) = (lab.normal(rows * cols), lab.normal(rows * cols), lab.normal(cols));
            let (gx, gdy) = (lab.matrix(rows, cols, &x), lab.matrix(rows, cols, &dy));
            let (of_bias, of_gain) = (lab.vector(&before), lab.vector(&before));
            let scales = lab.vector(&vec![f64::NAN; rows]);
            let mut rec = lab.recorder();
            bias(&mut rec, gdy, of_bias);
            gain(&mut rec, gx, 1e-5, gdy, scales, of_gain);
            lab.run(&rec);
            let added = |sums: Vec<f64>| -> Vec<f64> { sums.iter().zip(&before).map(|(s, b)| s + b).collect() };
            assert_close("bias", &lab.read_vector(of_bias)[..cols], &added(twin::bias(&dy, cols)), 1e-5);
            let want = added(twin::gain(&x, f64::from(1e-5f32), &dy, cols));
            assert_close("gain", &lab.read_vector(of_gain)[..cols], &want, 1e-5);
        }
    }

    #[test]
    fn the_twin_is_the_slope_of_the_norm_by_its_gain() {
        let mut lab = Lab::new();
        let (x, gain, dy) = (lab.normal(3 * 5), lab.normal(5), lab.normal(3 * 5));
        let f =
            |gain: &[f64]| -> f64 { rms_norm::twin::forward(&x, gain, 1e-5).iter().zip(&dy).map(|(y, d)| y * d).sum() };
        assert_gradient(&gain, &twin::gain(&x, 1e-5, &dy, 5), f);
    }
}
