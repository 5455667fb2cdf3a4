//! The cases of layers with a gated delta rule in place of attention, and of the gate behind attention that such models have.

use super::subject::Subject;
use super::trial::{Amount, Case, Trial, added};
use crate::ops::causal_conv::{self, Convolution};
use crate::ops::delta_rule::{self, Shape};
use crate::ops::gated_norm::{self, GatedNorm};
use crate::ops::output_gate;

/// Rows of a pass: two chunks of a GPU's kernels and a part of a third one. The twin goes from row to row, and all are compared.
const ROWS: usize = 70;
/// The most key heads. The heads are alike.
const MAX_KEY_HEADS: usize = 2;
const BOUND: f64 = 2e-5;
/// The gradients of the decays are sums of terms of both signs.
const DECAY_BOUND: f64 = 1e-4;

#[derive(Clone, Copy)]
struct Sizes {
    shape: Shape,
    taps: usize,
    eps: f32,
    /// Heads of attention, and the features of each.
    heads: usize,
    head_dim: usize,
}

/// None for a model without such layers.
pub(super) fn all(subject: &Subject) -> Vec<Case> {
    let Some(of) = &subject.config.linear_attention else { return Vec::new() };
    let key_heads = of.key_heads.min(MAX_KEY_HEADS);
    let value_heads = key_heads * (of.value_heads / of.key_heads);
    let [key_heads, value_heads, key_dim, value_dim] =
        [key_heads, value_heads, of.key_head_dim, of.value_head_dim].map(|n| n as u32);
    let sizes = Sizes {
        shape: Shape { key_heads, value_heads, key_dim, value_dim },
        taps: of.taps,
        eps: subject.config.rms_norm_eps,
        heads: subject.config.num_heads,
        head_dim: subject.config.head_dim,
    };
    let case = |name: &str, cols: usize, record: fn(&mut Trial, Sizes) -> Amount| Case {
        name: format!("{name}, {ROWS} x {cols}"),
        record: Box::new(move |trial| record(trial, sizes)),
    };
    let [inputs, outputs] = [sizes.shape.qkv_cols(), sizes.shape.out_cols()].map(|cols| cols as usize);
    vec![
        case("gated delta rule", outputs, rule),
        case("gated delta rule backward", outputs, rule_backward),
        case("causal convolution", inputs, convolution),
        case("gated RMSNorm", outputs, norm),
        case("gate of attention", sizes.heads * sizes.head_dim, gate),
    ]
}

/// Positions of two sequences, one after the other.
fn positions() -> Vec<u32> {
    (0..ROWS as u32).map(|row| row % 45).collect()
}

/// The work on the state, which has `flops` for each of its values in every row, and on the inputs.
fn of_state(shape: Shape, flops: f64) -> Amount {
    let cells = ROWS as f64 * f64::from(shape.out_cols()) * f64::from(shape.key_dim);
    let bytes = 8.0 * (ROWS * shape.qkv_cols() as usize) as f64;
    Amount { flops: flops * cells, bytes, ..Amount::default() }
}

fn rule(trial: &mut Trial, Sizes { shape, .. }: Sizes) -> Amount {
    let positions = positions();
    let of = delta_rule::twin::values(trial, shape, ROWS);
    let operands = delta_rule::twin::operands(trial, shape, &positions, &of);
    let out = trial.empty(ROWS, shape.out_cols() as usize);
    delta_rule::forward(&mut trial.rec, &operands, None, out);
    let result = delta_rule::twin::forward(delta_rule::twin::Sizes { shape, positions: &positions }, &of);
    let all: Vec<usize> = (0..ROWS).collect();
    trial.expect("result", out, &all, BOUND, || result);
    of_state(shape, 6.0)
}

// A case of its own: both directions compute the factors and the products of keys first, and one would hide the other's fault.
fn rule_backward(trial: &mut Trial, Sizes { shape, .. }: Sizes) -> Amount {
    let positions = positions();
    let of = delta_rule::twin::values(trial, shape, ROWS);
    let operands = delta_rule::twin::operands(trial, shape, &positions, &of);
    let (heads, width) = (shape.value_heads as usize, shape.out_cols() as usize);
    let (dout, before) = (trial.normal(ROWS * width), trial.normal(heads));
    let of_vectors = [(); 2].map(|()| trial.vector(&before));
    let gradients = delta_rule::twin::gradients(trial, shape, &dout, Some(of_vectors));
    delta_rule::backward(&mut trial.rec, &operands, &gradients);
    let want = delta_rule::twin::backward(delta_rule::twin::Sizes { shape, positions: &positions }, &of, &dout);
    let all: Vec<usize> = (0..ROWS).collect();
    let [of_logs, of_biases] = [&want.a_log, &want.dt_bias].map(|sums| added(&before, sums, 1.0));
    trial.expect("gradient of queries, keys and values", gradients.dqkv, &all, BOUND, || want.qkv);
    trial.expect("gradient of the write strengths", gradients.db, &all, BOUND, || want.b);
    trial.expect("gradient of the decays", gradients.da, &all, DECAY_BOUND, || want.a);
    trial.expect_vector("gradient of the decays' factors", of_vectors[0], DECAY_BOUND, || of_logs);
    trial.expect_vector("gradient of the decays' additions", of_vectors[1], DECAY_BOUND, || of_biases);
    of_state(shape, 16.0)
}

fn convolution(trial: &mut Trial, Sizes { shape, taps, .. }: Sizes) -> Amount {
    let (positions, channels) = (positions(), shape.qkv_cols() as usize);
    let (inputs, weights) = (trial.normal(ROWS * channels), trial.normal(channels * taps));
    let (dout, before) = (trial.normal(ROWS * channels), trial.normal(channels * taps));
    let of = Convolution {
        positions: trial.words(&positions),
        weights: trial.vector(&weights),
        taps: taps as u32,
        inputs: trial.matrix(ROWS, channels, &inputs),
    };
    let (device_dout, of_weights) = (trial.matrix(ROWS, channels, &dout), trial.vector(&before));
    let [out, dinputs] = [(); 2].map(|()| trial.empty(ROWS, channels));
    let terms = trial.empty(ROWS, channels * taps);
    causal_conv::forward(&mut trial.rec, &of, None, out);
    causal_conv::backward(&mut trial.rec, &of, device_dout, dinputs);
    causal_conv::weight_gradient(&mut trial.rec, &of, device_dout, terms, of_weights);
    let sizes = causal_conv::twin::Sizes { positions: &positions, channels, taps };
    let result = causal_conv::twin::forward(sizes, &inputs, &weights);
    let (gradient, sums) = causal_conv::twin::backward(sizes, &inputs, &weights, &dout);
    let all: Vec<usize> = (0..ROWS).collect();
    trial.expect("convolution", out, &all, BOUND, || result);
    trial.expect("gradient of its input", dinputs, &all, BOUND, || gradient);
    trial.expect_vector("gradient of its weights", of_weights, BOUND, move || added(&before, &sums, 1.0));
    Amount::bytes(4 * ROWS * channels * (8 + 2 * taps))
}

fn norm(trial: &mut Trial, Sizes { shape, eps, .. }: Sizes) -> Amount {
    let (heads, size, cols) = (shape.value_heads as usize, shape.value_dim as usize, shape.out_cols() as usize);
    let [x, z, dout] = [(); 3].map(|()| trial.normal(ROWS * cols));
    let [gain, before] = [(); 2].map(|()| trial.normal(size));
    let of = GatedNorm {
        heads: shape.value_heads,
        eps,
        x: trial.matrix(ROWS, cols, &x),
        gain: trial.vector(&gain),
        z: trial.matrix(ROWS, cols, &z),
    };
    let (device_dout, of_gain) = (trial.matrix(ROWS, cols, &dout), trial.vector(&before));
    let [out, dx, dz] = [(); 3].map(|()| trial.empty(ROWS, cols));
    let scales = trial.vector(&vec![f64::NAN; ROWS * heads]);
    gated_norm::forward(&mut trial.rec, &of, out);
    gated_norm::backward(&mut trial.rec, &of, device_dout, dx, dz);
    gated_norm::gain_gradient(&mut trial.rec, &of, device_dout, scales, of_gain);
    let result = gated_norm::twin::forward(&x, &gain, &z, f64::from(eps));
    let [of_x, of_z, sums] = gated_norm::twin::backward(&x, &gain, &z, f64::from(eps), &dout);
    let all: Vec<usize> = (0..ROWS).collect();
    trial.expect("result", out, &all, BOUND, || result);
    trial.expect("gradient of the input", dx, &all, BOUND, || of_x);
    trial.expect("gradient of the gate", dz, &all, BOUND, || of_z);
    trial.expect_vector("gradient of the gains", of_gain, BOUND, move || added(&before, &sums, 1.0));
    Amount::bytes(4 * 9 * ROWS * cols)
}

fn gate(trial: &mut Trial, Sizes { heads, head_dim, .. }: Sizes) -> Amount {
    let cols = heads * head_dim;
    let joint = trial.normal(ROWS * 2 * cols);
    let [x, dout, d_queries] = [(); 3].map(|()| trial.normal(ROWS * cols));
    // Each head has its query, then its gate.
    let half = |which: usize| -> Vec<f64> {
        joint.chunks_exact(2 * head_dim).flat_map(|head| head[which * head_dim..][..head_dim].to_vec()).collect()
    };
    let [queries, gates] = [half(0), half(1)];
    let device_joint = trial.matrix(ROWS, 2 * cols, &joint);
    let [device_x, device_dout, device_d_queries] =
        [&x, &dout, &d_queries].map(|values| trial.matrix(ROWS, cols, values));
    let [device_queries, device_gates, out] = [(); 3].map(|()| trial.empty(ROWS, cols));
    let d_joint = trial.empty(ROWS, 2 * cols);
    output_gate::split(&mut trial.rec, device_joint, heads as u32, device_queries, device_gates);
    output_gate::forward(&mut trial.rec, device_gates, device_x, out);
    output_gate::backward_in_place(&mut trial.rec, device_gates, device_x, device_dout);
    output_gate::merge(&mut trial.rec, device_d_queries, device_gates, heads as u32, d_joint);
    let result = output_gate::twin::forward(&gates, &x);
    let (d_gates, dx) = output_gate::twin::backward(&gates, &x, &dout);
    let halves = d_queries.chunks_exact(head_dim).zip(d_gates.chunks_exact(head_dim));
    let want: Vec<f64> = halves.flat_map(|(query, gate)| [query, gate].concat()).collect();
    let all: Vec<usize> = (0..ROWS).collect();
    trial.expect("queries", device_queries, &all, 0.0, || queries);
    trial.expect("result", out, &all, BOUND, || result);
    trial.expect("gradient of the input", device_dout, &all, BOUND, || dx);
    trial.expect("gradient of queries and gates", d_joint, &all, BOUND, || want);
    Amount::bytes(4 * 13 * ROWS * cols)
}
