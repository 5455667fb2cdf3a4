//! The gate on the output of an attention (transformers' `Qwen3_5Attention`): `out = x sigmoid(gate)`. With D the gradient of the result
//! and `s = sigmoid(gate)`: `dx = D s` and `dgate = D x s (1 - s)`.
//!
//! Such a layer's query projection gives each head its query and then its gate. Norms, rotations and attention take heads that lie one
//! behind the other, so [`split`] copies both halves out, and [`merge`] puts their gradients back together for the projection.

use super::elementwise::{self, elements};
use crate::gpu::{Kernel, Matrix, Recorder, params};

params! {
    struct HalfParams {
        rows: u32,
        cols: u32,
        ld4: u32,
        half4: u32,
        first_ld4: u32,
        second_ld4: u32,
    }
}

fn kernel(name: &'static str, source: &'static str) -> Kernel {
    elementwise::kernel::<elementwise::Params>(name, source).part(shader!("lib/sigmoid.wgsl"))
}

fn forward_kernel() -> Kernel {
    kernel("output_gate", shader!("output_gate.wgsl"))
}

fn backward_kernel() -> Kernel {
    kernel("output_gate_backward", shader!("output_gate_backward.wgsl"))
}

fn halves_kernel(merge: bool) -> Kernel {
    elementwise::kernel::<HalfParams>("head_halves", shader!("head_halves.wgsl")).constant("MERGE", merge)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![forward_kernel(), backward_kernel(), halves_kernel(false), halves_kernel(true)]
}

fn halves(rec: &mut Recorder, joint: Matrix, heads: u32, [first, second]: [Matrix; 2], merge: bool) {
    assert!(joint.cols.is_multiple_of(8 * heads), "{heads} heads of two halves, each a multiple of 4, in {joint:?}");
    for half in [first, second] {
        assert_eq!((half.rows, half.cols), (joint.rows, joint.cols / 2), "half of each head of {joint:?}");
    }
    let params = HalfParams {
        rows: joint.rows,
        cols: joint.cols,
        ld4: joint.ld / 4,
        half4: joint.cols / (8 * heads),
        first_ld4: first.ld / 4,
        second_ld4: second.ld / 4,
    };
    let groups = elementwise::workgroups(rec, joint);
    let views = [joint.view, first.view, second.view];
    rec.dispatch("head_halves", halves_kernel(merge), &views, &params, groups, elements(joint));
}

/// Copies the first half of each head of `joint`, `[rows, heads * 2 * size]`, to `queries` and the second one to `gates`, both
/// `[rows, heads * size]`. The size of a head is a multiple of 4.
pub fn split(rec: &mut Recorder, joint: Matrix, heads: u32, queries: Matrix, gates: Matrix) {
    halves(rec, joint, heads, [queries, gates], false);
}

/// The transpose of [`split`]: `joint` takes both halves of each head.
pub fn merge(rec: &mut Recorder, queries: Matrix, gates: Matrix, heads: u32, joint: Matrix) {
    halves(rec, joint, heads, [queries, gates], true);
}

/// `out = x sigmoid(gate)`; all are `[rows, cols]`.
pub fn forward(rec: &mut Recorder, gate: Matrix, x: Matrix, out: Matrix) {
    elementwise::assert_alike(&[gate, x, out]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, x.view, out.view];
    rec.dispatch("output_gate", forward_kernel(), &views, &params, groups, 4 * elements(gate));
}

/// From the forward inputs and the gradient of the result, all `[rows, cols]`: `gate` becomes its gradient, and `dout` that of `x`.
pub fn backward_in_place(rec: &mut Recorder, gate: Matrix, x: Matrix, dout: Matrix) {
    elementwise::assert_alike(&[gate, x, dout]);
    let (params, groups) = (elementwise::params(gate), elementwise::workgroups(rec, gate));
    let views = [gate.view, x.view, dout.view];
    rec.dispatch("output_gate_backward", backward_kernel(), &views, &params, groups, 6 * elements(gate));
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    fn sigmoid(e: f64) -> f64 {
        1.0 / (1.0 + (-e).exp())
    }

    pub(crate) fn forward(gate: &[f64], x: &[f64]) -> Vec<f64> {
        gate.iter().zip(x).map(|(e, x)| x * sigmoid(*e)).collect()
    }

    /// The gradients of gate and x.
    pub(crate) fn backward(gate: &[f64], x: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let one = |((e, x), d): ((&f64, &f64), &f64)| {
            let s = sigmoid(*e);
            (d * x * s * (1.0 - s), d * s)
        };
        gate.iter().zip(x).zip(dout).map(one).unzip()
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
            let [gate, x, dout] = [(); 3].map(|()| lab.normal(rows * cols));
            // Wide enough for the tails of the gate.
            let gate: Vec<f64> = gate.iter().map(|e| f64::from((3.0 * e) as f32)).collect();
            let [dgate, device_gate, device_x, dx] =
                [&gate, &gate, &x, &dout].map(|values| lab.matrix(rows, cols, values));
            let out = lab.empty(rows, cols);
            let mut rec = lab.recorder();
            forward(&mut rec, device_gate, device_x, out);
            backward_in_place(&mut rec, dgate, device_x, dx);
            lab.run(&rec);
            let (want_dgate, want_dx) = twin::backward(&gate, &x, &dout);
            assert_close("out", &lab.read(out), &twin::forward(&gate, &x), 1e-5);
            assert_close("dgate", &lab.read(dgate), &want_dgate, 1e-5);
            assert_close("dx", &lab.read(dx), &want_dx, 1e-5);
        }
    }

    #[test]
    fn large_gates_stay_finite() {
        let mut lab = Lab::new();
        let gate = [-1e30, -1000.0, -88.0, 88.0, 1000.0, 1e30];
        let ones = [1.0; 6];
        let [dgate, x, dout] = [&gate, &ones, &ones].map(|values| lab.matrix(1, 6, values));
        let mut rec = lab.recorder();
        backward_in_place(&mut rec, dgate, x, dout);
        lab.run(&rec);
        assert_close("dx", &lab.read(dout), &gate.map(|e| f64::from(e > 0.0)), 1e-6);
        assert!(lab.read(dgate).iter().all(|slope| slope.abs() < 1e-30));
    }

    #[test]
    fn heads_are_split_into_halves_and_merged_again() {
        for (rows, heads, size) in [(1, 1, 4), (3, 2, 12), (9, 3, 64), (5, 8, 256)] {
            let mut lab = Lab::new();
            let joint = lab.normal(rows * heads * 2 * size);
            let device_joint = lab.matrix(rows, heads * 2 * size, &joint);
            let again = lab.empty(rows, heads * 2 * size);
            let [queries, gates] = [(); 2].map(|()| lab.empty(rows, heads * size));
            let mut rec = lab.recorder();
            split(&mut rec, device_joint, heads as u32, queries, gates);
            merge(&mut rec, queries, gates, heads as u32, again);
            lab.run(&rec);
            let half = |first: usize| -> Vec<f64> {
                joint.chunks_exact(2 * size).flat_map(|head| head[first..first + size].to_vec()).collect()
            };
            assert_close("queries", &lab.read(queries), &half(0), 1e-7);
            assert_close("gates", &lab.read(gates), &half(size), 1e-7);
            assert_close("merged", &lab.read(again), &joint, 1e-7);
        }
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let [gate, x, dout] = [(); 3].map(|()| lab.normal(12));
        let (dgate, dx) = twin::backward(&gate, &x, &dout);
        let objective = |out: Vec<f64>| out.iter().zip(&dout).map(|(y, d)| y * d).sum();
        assert_gradient(&gate, &dgate, |gate| objective(twin::forward(gate, &x)));
        assert_gradient(&x, &dx, |x| objective(twin::forward(&gate, x)));
    }
}
