//! SwiGLU (Shazeer 2020): `act = silu(gate) * up` with `silu(e) = e s` and `s = 1 / (1 + exp(-e))`.
//!
//! With `D` the gradient of `act`: `d_up = D silu(e)` and `d_gate = D up s (1 + e (1 - s))`.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder};

fn forward_kernel() -> Kernel {
    elementwise::kernel("swiglu", include_str!("../../shaders/swiglu.wgsl"))
        .part(include_str!("../../shaders/lib/sigmoid.wgsl"))
}

fn backward_kernel() -> Kernel {
    elementwise::kernel("swiglu_backward", include_str!("../../shaders/swiglu_backward.wgsl"))
        .part(include_str!("../../shaders/lib/sigmoid.wgsl"))
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![forward_kernel(), backward_kernel()]
}

/// `act = silu(gate) * up`; all are `[rows, cols]`.
pub fn forward(rec: &mut Recorder, gate: Matrix, up: Matrix, act: Matrix) {
    elementwise::assert_alike(&[gate, up, act]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, up.view, act.view];
    rec.dispatch("swiglu", forward_kernel(), &views, &params, groups, 4 * elementwise::elements(gate));
}

/// From the forward inputs and the gradient of `act`: `gate` and `up` become their gradients, `dact` becomes `act`
/// again, which the gradient of the weights behind it needs.
pub fn backward_in_place(rec: &mut Recorder, gate: Matrix, up: Matrix, dact: Matrix) {
    elementwise::assert_alike(&[gate, up, dact]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, up.view, dact.view];
    rec.dispatch("swiglu_backward", backward_kernel(), &views, &params, groups, 8 * elementwise::elements(gate));
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(test)]
pub mod twin {
    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    pub fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
        gate.iter().zip(up).map(|(e, g)| e * sigmoid(*e) * g).collect()
    }

    /// The gradients of gate and up.
    pub fn backward(gate: &[f64], up: &[f64], dact: &[f64]) -> (Vec<f64>, Vec<f64>) {
        gate.iter()
            .zip(up)
            .zip(dact)
            .map(|((e, g), d)| (d * g * sigmoid(*e) * (1.0 + e * (1.0 - sigmoid(*e))), d * e * sigmoid(*e)))
            .unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};

    #[test]
    fn both_directions_equal_the_twin() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (5, 64), (70, 129)]) {
            let mut lab = Lab::new();
            let (gate, up, dact) = (lab.normal(rows * cols), lab.normal(rows * cols), lab.normal(rows * cols));
            let [dgate, dup, again] = [&gate, &up, &dact].map(|values| lab.matrix(rows, cols, values));
            let [device_gate, device_up] = [&gate, &up].map(|values| lab.matrix(rows, cols, values));
            let act = lab.empty(rows, cols);
            let mut rec = lab.recorder();
            forward(&mut rec, device_gate, device_up, act);
            backward_in_place(&mut rec, dgate, dup, again);
            lab.run(&rec);
            let (want_dgate, want_dup) = twin::backward(&gate, &up, &dact);
            assert_close("act", &lab.read(act), &twin::forward(&gate, &up), 1e-5);
            assert_close("dgate", &lab.read(dgate), &want_dgate, 1e-5);
            assert_close("dup", &lab.read(dup), &want_dup, 1e-5);
            assert_close("act again", &lab.read(again), &twin::forward(&gate, &up), 1e-5);
        }
    }

    #[test]
    fn large_gates_stay_finite() {
        let mut lab = Lab::new();
        let gate = [-1e30, -1000.0, -88.0, 88.0, 1000.0, 1e30];
        let ones = [1.0; 6];
        let [dgate, dup, act] = [&gate, &ones, &ones].map(|values| lab.matrix(1, 6, values));
        let mut rec = lab.recorder();
        backward_in_place(&mut rec, dgate, dup, act);
        lab.run(&rec);
        let relu: Vec<f64> = gate.iter().map(|e| e.max(0.0)).collect();
        assert_close("act", &lab.read(act), &relu, 1e-6);
        assert_close("dup", &lab.read(dup), &relu, 1e-6);
        assert_close("dgate", &lab.read(dgate), &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0], 1e-6);
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let (gate, up, dact) = (lab.normal(12), lab.normal(12), lab.normal(12));
        let (dgate, dup) = twin::backward(&gate, &up, &dact);
        let objective = |act: Vec<f64>| act.iter().zip(&dact).map(|(y, d)| y * d).sum();
        assert_gradient(&gate, &dgate, |gate| objective(twin::forward(gate, &up)));
        assert_gradient(&up, &dup, |up| objective(twin::forward(&gate, up)));
    }
}
