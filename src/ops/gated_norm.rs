//! The gated RMSNorm behind a linear attention (transformers' `Qwen3_5RMSNormGated`), head by head: `out = g n z sigmoid(z)` with
//! `n = x / sqrt(mean(x^2) + eps)`. Its gains g are shared by all heads, and no constant is added to them.
//!
//! With D the gradient of the result, `s = sigmoid(z)`, `r = 1 / sqrt(mean(x^2) + eps)` and `u = D g z s`: `dx = r (u - n mean(n u))`,
//! `dz = D g n s (1 + z (1 - s))`, and the gradient of g is the sum of `D z s n` over all rows and heads.

use super::column_gradient;
use super::elementwise::{assert_alike, elements};
use super::lib_parts::REDUCE;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// Invocations of a workgroup: one vector of a software adapter; a quad of a head of 128 features each on a GPU.
fn wg_size(cpu: bool) -> u32 {
    if cpu { 8 } else { 32 }
}

params! {
    struct Params {
        rows: u32,
        dim4: u32,
        eps: f32,
    }
}

fn kernel(name: &'static str, source: &'static str, cpu: bool) -> Kernel {
    Kernel::new::<Params>(name, source).part(shader!("lib/sigmoid.wgsl")).part(REDUCE).constant("WG_SIZE", wg_size(cpu))
}

fn forward_kernel(cpu: bool) -> Kernel {
    kernel("gated_norm", shader!("gated_norm.wgsl"), cpu)
}

fn backward_kernel(cpu: bool) -> Kernel {
    kernel("gated_norm_backward", shader!("gated_norm_backward.wgsl"), cpu)
}

pub(super) fn kernels() -> Vec<Kernel> {
    [false, true].into_iter().flat_map(|cpu| [forward_kernel(cpu), backward_kernel(cpu)]).collect()
}

/// The operands that both directions read.
#[derive(Clone, Copy, Debug)]
pub struct GatedNorm {
    /// Heads of a row, each normalized by itself. Their size, `x.cols / heads`, is a multiple of 4.
    pub heads: u32,
    /// The constant under the square root, above 0.
    pub eps: f32,
    /// The input of the norm, `[rows, heads * size]`.
    pub x: Matrix,
    /// The gains, f32 `[size]`.
    pub gain: View,
    /// The input of the gate, `[rows, heads * size]`.
    pub z: Matrix,
}

impl GatedNorm {
    /// Checks the shapes. Returns the heads as rows, and the parameters for them.
    fn params(&self, others: &[Matrix]) -> (Matrix, Params) {
        assert_alike(&[self.x, self.z]);
        others.iter().for_each(|other| assert_alike(&[self.x, *other]));
        let heads = self.x.split_heads(self.heads);
        assert!(self.gain.bytes >= 4 * u64::from(heads.cols), "{self:?}");
        (heads, Params { rows: heads.rows, dim4: heads.cols / 4, eps: self.eps })
    }
}

/// `out = gain * norm(x) * z * sigmoid(z)`; out is `[rows, heads * size]`.
pub fn forward(rec: &mut Recorder, of: &GatedNorm, out: Matrix) {
    let (heads, params) = of.params(&[out]);
    let views = [of.x.view, of.gain, of.z.view, out.view];
    let (kernel, groups) = (forward_kernel(rec.capabilities.cpu), rec.fold(u64::from(heads.rows)));
    rec.dispatch("gated_norm", kernel, &views, &params, groups, 6 * elements(heads));
}

/// The gradients of x and z from that of the result, all `[rows, heads * size]`. `dout` becomes the gradient of `gain * norm(x)`, which
/// [`gain_gradient`] reads.
pub fn backward(rec: &mut Recorder, of: &GatedNorm, dout: Matrix, dx: Matrix, dz: Matrix) {
    let (heads, params) = of.params(&[dout, dx, dz]);
    let views = [of.x.view, of.gain, of.z.view, dout.view, dx.view, dz.view];
    let (kernel, groups) = (backward_kernel(rec.capabilities.cpu), rec.fold(u64::from(heads.rows)));
    rec.dispatch("gated_norm_backward", kernel, &views, &params, groups, 14 * elements(heads));
}

/// Adds the gradient of the gains, f32 `[size]`. `dnormed`, `[rows, heads * size]`, is what [`backward`] leaves of `dout`; `scales` is
/// scratch for one f32 per row and head.
pub fn gain_gradient(rec: &mut Recorder, of: &GatedNorm, dnormed: Matrix, scales: View, gradient: View) {
    let (heads, _) = of.params(&[dnormed]);
    column_gradient::gain(rec, heads, of.eps, dnormed.split_heads(of.heads), scales, gradient);
}

/// The formulas in plain loops, in f64; the reference of every variant. The size of a head is that of `gain`.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    fn silu(z: f64) -> f64 {
        z / (1.0 + (-z).exp())
    }

    /// The factor of the norm of each head.
    fn scales(x: &[f64], size: usize, eps: f64) -> Vec<f64> {
        let mean_square = |head: &[f64]| head.iter().map(|v| v * v).sum::<f64>() / size as f64;
        x.chunks_exact(size).map(|head| 1.0 / (mean_square(head) + eps).sqrt()).collect()
    }

    pub(crate) fn forward(x: &[f64], gain: &[f64], z: &[f64], eps: f64) -> Vec<f64> {
        let size = gain.len();
        let scales = scales(x, size, eps);
        (0..x.len()).map(|at| x[at] * scales[at / size] * gain[at % size] * silu(z[at])).collect()
    }

    /// The gradients of x, z and the gains.
    pub(crate) fn backward(x: &[f64], gain: &[f64], z: &[f64], eps: f64, dout: &[f64]) -> [Vec<f64>; 3] {
        let size = gain.len();
        let scales = scales(x, size, eps);
        let [mut dx, mut dz] = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let mut dgain = vec![0.0; size];
        for (head, r) in scales.iter().enumerate() {
            let normed = |i: usize| x[head * size + i] * r;
            let of_norm = |i: usize| dout[head * size + i] * gain[i] * silu(z[head * size + i]);
            let mean = (0..size).map(|i| normed(i) * of_norm(i)).sum::<f64>() / size as f64;
            for i in 0..size {
                let at = head * size + i;
                let s = 1.0 / (1.0 + (-z[at]).exp());
                dx[at] = r * (of_norm(i) - normed(i) * mean);
                dz[at] = dout[at] * gain[i] * normed(i) * s * (1.0 + z[at] * (1.0 - s));
                dgain[i] += dout[at] * silu(z[at]) * normed(i);
            }
        }
        [dx, dz, dgain]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient};

    const EPS: f32 = 1e-6;

    #[test]
    fn both_directions_equal_the_twin() {
        let sizes = [(1, 1, 4), (3, 2, 12), (5, 3, 64), (9, 4, 128), (37, 2, 100), (2, 5, 256)];
        for (cpu, (rows, heads, size)) in [false, true].into_iter().flat_map(|cpu| sizes.map(|sizes| (cpu, sizes))) {
            let mut lab = Lab::for_cpu(cpu);
            let width = heads * size;
            let [x, z, dout] = [(); 3].map(|()| lab.normal(rows * width));
            // Wide enough for the tails of the gate.
            let z: Vec<f64> = z.iter().map(|z| f64::from((3.0 * z) as f32)).collect();
            let (gain, before) = (lab.normal(size), lab.normal(size));
            let [device_x, device_z, device_dout] = [&x, &z, &dout].map(|values| lab.matrix(rows, width, values));
            let of = GatedNorm { heads: heads as u32, eps: EPS, x: device_x, gain: lab.vector(&gain), z: device_z };
            let [out, dx, dz] = [(); 3].map(|()| lab.empty(rows, width));
            let (of_gain, scales) = (lab.vector(&before), lab.vector(&vec![f64::NAN; rows * heads]));
            let mut rec = lab.recorder();
            forward(&mut rec, &of, out);
            backward(&mut rec, &of, device_dout, dx, dz);
            gain_gradient(&mut rec, &of, device_dout, scales, of_gain);
            lab.run(&rec);
            let what = |name: &str| format!("{name} of {rows} rows, {heads} heads of {size}");
            assert_close(&what("result"), &lab.read(out), &twin::forward(&x, &gain, &z, f64::from(EPS)), 1e-5);
            let [want_dx, want_dz, want_gain] = twin::backward(&x, &gain, &z, f64::from(EPS), &dout);
            assert_close(&what("dx"), &lab.read(dx), &want_dx, 1e-5);
            assert_close(&what("dz"), &lab.read(dz), &want_dz, 1e-5);
            let want: Vec<f64> = want_gain.iter().zip(&before).map(|(sum, before)| sum + before).collect();
            assert_close(&what("gradient of the gains"), &lab.read_vector(of_gain)[..size], &want, 1e-5);
        }
    }

    #[test]
    fn large_gates_stay_finite() {
        let mut lab = Lab::new();
        let z = [-1e30, -1000.0, -88.0, 0.0, 0.0, 88.0, 1000.0, 1e30];
        let ones = [1.0; 8];
        let [device_x, device_z, dout] = [&ones, &z, &ones].map(|values| lab.matrix(1, 8, values));
        let of = GatedNorm { heads: 1, eps: EPS, x: device_x, gain: lab.vector(&ones), z: device_z };
        let [out, dx, dz] = [(); 3].map(|()| lab.empty(1, 8));
        let mut rec = lab.recorder();
        forward(&mut rec, &of, out);
        backward(&mut rec, &of, dout, dx, dz);
        lab.run(&rec);
        assert_close("result", &lab.read(out), &z.map(|z| z.max(0.0)), 1e-5);
        assert_close("dz", &lab.read(dz), &[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0], 1e-5);
        assert!(lab.read(dx).iter().all(|value| value.is_finite()));
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let [x, z, dout] = [(); 3].map(|()| lab.normal(3 * 2 * 4));
        let gain = lab.normal(4);
        let [dx, dz, dgain] = twin::backward(&x, &gain, &z, 1e-6, &dout);
        let objective = |out: Vec<f64>| out.iter().zip(&dout).map(|(y, d)| y * d).sum();
        assert_gradient(&x, &dx, |x| objective(twin::forward(x, &gain, &z, 1e-6)));
        assert_gradient(&z, &dz, |z| objective(twin::forward(&x, &gain, z, 1e-6)));
        assert_gradient(&gain, &dgain, |gain| objective(twin::forward(&x, gain, &z, 1e-6)));
    }
}
