//! The list of cases, and those of the operations around linear layers and attention.

use super::subject::{RANK, Subject};
use super::trial::{Amount, Case, Trial, added, rows_of, sample};
use super::{attention, dora, experts, linear, linear_attention};
use crate::gpu::{Capabilities, Matrix, View};
use crate::ops::adamw::{self, AdamW};
use crate::ops::cross_entropy::{self, LogitRange};
use crate::ops::glu::Activation;
use crate::ops::rms_norm::{self, NormConstants, NormGradient, Residual};
use crate::ops::rope::{self, RotatedHeads};
use crate::ops::weight::Panel;
use crate::ops::{
    adamw8bit, add, bf16, column_gradient, dropout, embedding, glu, lora_gradient, quantize, rows, scale, short_conv,
    weight_gradient,
};
use crate::quant::format::{Code4, Float, Storage};
use crate::quant::{self, Scales};

/// The most elements of a gradient whose twin sums over all rows, and of the table of an embedding.
const MAX_GRADIENT: usize = 1 << 16;
const MAX_TABLE: usize = 1 << 22;
/// Columns of logits. The rows are alike, and more columns show nothing new.
const MAX_VOCABULARY: usize = 40_000;
/// The kernels compute in f32, and the twins in f64: sums of some thousand products are off by less than this.
const BOUND: f64 = 1e-5;
const EXACT: f64 = 1e-6;
const SETTINGS: AdamW =
    AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, loraplus_lr_ratio: 1.0 };

/// The sizes that the cases of this file need.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    hidden: usize,
    ffn: usize,
    vocabulary: usize,
    heads: usize,
    head_dim: usize,
    /// Rows that a short convolution reads; 0 where the model has none.
    taps: usize,
    activation: Activation,
    norm: NormConstants,
    logits: LogitRange,
}

/// Every case for a model on a device.
pub(super) fn all(subject: &Subject, capabilities: &Capabilities) -> Vec<Case> {
    let config = &subject.config;
    let sizes = Sizes {
        rows: subject.rows,
        hidden: config.hidden_size,
        ffn: config.intermediate_size,
        vocabulary: config.vocab_size,
        heads: config.num_heads,
        head_dim: config.head_dim,
        taps: config.convolutions.as_ref().map_or(0, |of| of.taps),
        activation: config.activation,
        norm: NormConstants { eps: config.rms_norm_eps, gain_offset: config.gain_offset },
        logits: LogitRange { scale: config.logit_scale, cap: config.final_softcap },
    };
    let mut cases = linear::all(subject, capabilities);
    cases.extend(attention::all(subject));
    cases.extend(experts::all(subject));
    cases.extend(linear_attention::all(subject));
    cases.push(dora::case(subject));
    let mut add = |name: &str, [rows, cols]: [usize; 2], record: fn(&mut Trial, Sizes) -> Amount| {
        let name = format!("{name}, {rows} x {cols}");
        cases.push(Case { name, record: Box::new(move |trial| record(trial, sizes)) });
    };
    let Sizes { rows, hidden, ffn, vocabulary, heads, head_dim, .. } = sizes;
    add("RMSNorm forward", [rows, hidden], norm_forward);
    add("RMSNorm of a residual sum", [rows, hidden], norm_of_sum);
    add("RMSNorm backward", [rows, hidden], norm_backward);
    add("gated unit forward", [rows, ffn], glu_forward);
    add("gated unit backward", [rows, ffn], glu_backward);
    add("rotary embedding", [rows, heads * head_dim], rotary);
    add("embedding forward", [rows, hidden], embedding_forward);
    add("embedding gradient", [rows, hidden], embedding_gradient);
    add("cross-entropy with gradient", [rows.min(256), vocabulary.min(MAX_VOCABULARY)], loss);
    add("gathered and scattered rows", [rows, hidden], moved_rows);
    add("LoRA gradients", [rows, hidden], factor_gradients);
    add("weight gradient", [rows, hidden], full_gradient);
    add("bias and gain gradients", [rows, hidden], column_gradients);
    add("clipping and AdamW", [RANK, hidden], optimizer);
    add("AdamW with 8-bit moments", [RANK, hidden], optimizer_8bit);
    add("dropout", [rows, hidden], dropped);
    add("sum and scale", [rows, hidden], sum_and_scale);
    add("activations in bf16", [rows, hidden], in_bf16);
    add("quantization to NF4", [64, hidden], quantized);
    if sizes.taps > 0 {
        add("short convolution", [rows.min(256), hidden], convolved);
    }
    cases
}

fn scaled(values: &[f64], factor: f64) -> Vec<f64> {
    values.iter().map(|v| factor * v).collect()
}

/// Drawn values and the matrix that holds them.
fn drawn(trial: &mut Trial, rows: usize, cols: usize) -> (Vec<f64>, Matrix) {
    let values = trial.normal(rows * cols);
    let matrix = trial.matrix(rows, cols, &values);
    (values, matrix)
}

/// Drawn values and the vector that holds them.
fn drawn_vector(trial: &mut Trial, count: usize) -> (Vec<f64>, View) {
    let values = trial.normal(count);
    let view = trial.vector(&values);
    (values, view)
}

/// Rows whose results are compared where each row has one of its own.
fn samples(rows: usize) -> Vec<usize> {
    sample(rows, 64)
}

/// The gains of a norm as its twin takes them.
fn gains(gain: &[f64], norm: NormConstants) -> Vec<f64> {
    gain.iter().map(|g| f64::from(norm.gain_offset) + g).collect()
}

fn norm_forward(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, norm, .. } = sizes;
    let ((x, device_x), (gain, device_gain)) = (drawn(trial, rows, hidden), drawn_vector(trial, hidden));
    let y = trial.empty(rows, hidden);
    rms_norm::forward(&mut trial.rec, device_x, device_gain, norm, y);
    let samples = samples(rows);
    let x = rows_of(&x, hidden, &samples);
    trial
        .expect("y", y, &samples, BOUND, move || rms_norm::twin::forward(&x, &gains(&gain, norm), f64::from(norm.eps)));
    Amount::bytes(8 * rows * hidden)
}

fn norm_of_sum(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, norm, .. } = sizes;
    let ((x, device_x), (delta, device_delta)) = (drawn(trial, rows, hidden), drawn(trial, rows, hidden));
    let (gain, device_gain) = drawn_vector(trial, hidden);
    let (sum, y) = (trial.empty(rows, hidden), trial.empty(rows, hidden));
    let residual = Residual { x: device_x, delta: device_delta, delta_gain: None, delta_scale: 0.75, sum };
    rms_norm::forward_add(&mut trial.rec, residual, Some((device_gain, y)), norm);
    let samples = samples(rows);
    let total = added(&rows_of(&x, hidden, &samples), &rows_of(&delta, hidden, &samples), 0.75);
    let want = total.clone();
    trial.expect("sum", sum, &samples, EXACT, || want);
    trial.expect("y", y, &samples, BOUND, move || {
        rms_norm::twin::forward(&total, &gains(&gain, norm), f64::from(norm.eps))
    });
    Amount::bytes(16 * rows * hidden)
}

fn norm_backward(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, norm, .. } = sizes;
    let ((x, device_x), (dy, device_dy)) = (drawn(trial, rows, hidden), drawn(trial, rows, hidden));
    let ((gain, device_gain), (before, added_up)) = (drawn_vector(trial, hidden), drawn(trial, rows, hidden));
    let dx = trial.empty(rows, hidden);
    let gradient = NormGradient { x: device_x, gain: device_gain, dy: device_dy, dy_scale: 0.5, dx, accumulate: false };
    rms_norm::backward(&mut trial.rec, gradient, norm);
    rms_norm::backward(&mut trial.rec, NormGradient { dx: added_up, accumulate: true, ..gradient }, norm);
    let samples = samples(rows);
    let [x, dy, before] = [&x, &dy, &before].map(|values| rows_of(values, hidden, &samples));
    let gradient = rms_norm::twin::backward(&x, &gains(&gain, norm), f64::from(norm.eps), &scaled(&dy, 0.5));
    let sum = added(&before, &gradient, 1.0);
    trial.expect("dx", dx, &samples, BOUND, || gradient);
    trial.expect("dx added up", added_up, &samples, BOUND, || sum);
    Amount::bytes(28 * rows * hidden)
}

fn glu_forward(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, ffn, activation, .. } = sizes;
    let ((gate, device_gate), (up, device_up)) = (drawn(trial, rows, ffn), drawn(trial, rows, ffn));
    let act = trial.empty(rows, ffn);
    glu::forward(&mut trial.rec, activation, device_gate, device_up, act);
    let samples = samples(rows);
    let [gate, up] = [&gate, &up].map(|values| rows_of(values, ffn, &samples));
    trial.expect("act", act, &samples, BOUND, move || glu::twin::forward(activation, &gate, &up));
    Amount::bytes(12 * rows * ffn)
}

fn glu_backward(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, ffn, activation, .. } = sizes;
    let ((gate, device_gate), (up, device_up)) = (drawn(trial, rows, ffn), drawn(trial, rows, ffn));
    let (dact, device_dact) = drawn(trial, rows, ffn);
    glu::backward_in_place(&mut trial.rec, activation, device_gate, device_up, device_dact);
    let samples = samples(rows);
    let [gate, up, dact] = [&gate, &up, &dact].map(|values| rows_of(values, ffn, &samples));
    let (dgate, dup) = glu::twin::backward(activation, &gate, &up, &dact);
    trial.expect("gradient of gate", device_gate, &samples, BOUND, || dgate);
    trial.expect("gradient of up", device_up, &samples, BOUND, || dup);
    trial.expect("act", device_dact, &samples, BOUND, move || glu::twin::forward(activation, &gate, &up));
    Amount::bytes(24 * rows * ffn)
}

fn rotary(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, heads, head_dim, .. } = sizes;
    let width = heads * head_dim;
    let of =
        RotatedHeads { heads: heads as u32, head_dim: head_dim as u32, rotated: head_dim as u32, interleaved: false };
    let ((x, device_x), (dx, device_dx)) = (drawn(trial, rows, width), drawn(trial, rows, width));
    let half = head_dim / 2;
    let angle = |at: usize| (at / half) as f64 * 1e4f64.powf(-((at % half) as f64) / half as f64);
    let table: Vec<f64> =
        (0..rows * half).flat_map(|at| [angle(at).cos(), angle(at).sin()]).map(|turn| f64::from(turn as f32)).collect();
    let positions: Vec<u32> = (0..rows as u32).rev().collect();
    let (device_positions, device_table) = (trial.words(&positions), trial.vector(&table));
    rope::forward(&mut trial.rec, device_x, of, device_positions, device_table);
    rope::backward(&mut trial.rec, device_dx, of, device_positions, device_table);
    let samples = samples(rows);
    let positions: Vec<u32> = samples.iter().map(|row| positions[*row]).collect();
    let [x, dx] = [&x, &dx].map(|values| rows_of(values, width, &samples));
    let [y, gradient] =
        [(&x, 1.0), (&dx, -1.0)].map(|(values, sign)| rope::twin::rotate(values, of, &positions, &table, sign));
    trial.expect("rotated", device_x, &samples, EXACT, || y);
    trial.expect("rotated back", device_dx, &samples, EXACT, || gradient);
    Amount::bytes(16 * rows * width)
}

fn tokens(trial: &mut Trial, rows: usize, vocabulary: usize) -> Vec<u32> {
    (0..rows).map(|_| trial.index(vocabulary) as u32).collect()
}

fn embedding_forward(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, vocabulary, .. } = sizes;
    let vocabulary = vocabulary.min((MAX_TABLE / hidden).max(1));
    let values = trial.normal(vocabulary * hidden);
    let (table, held) = trial.weight(Storage::Float(Float::Bf16), [vocabulary, hidden], &values, 1);
    let tokens = tokens(trial, rows, vocabulary);
    let (device_tokens, out) = (trial.words(&tokens), trial.empty(rows, hidden));
    embedding::forward(&mut trial.rec, device_tokens, &table, 1.0, out);
    let samples: Vec<usize> = (0..rows).collect();
    trial.expect("rows", out, &samples, EXACT, move || embedding::twin::forward(&tokens, &held, hidden));
    Amount::bytes(6 * rows * hidden)
}

fn embedding_gradient(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    let vocabulary = 100;
    let (dy, device_dy) = drawn(trial, rows, hidden);
    let (before, gradient) = drawn_vector(trial, vocabulary * hidden);
    let tokens = tokens(trial, rows, vocabulary);
    let mut order: Vec<u32> = (0..rows as u32).collect();
    order.sort_by_key(|row| tokens[*row as usize]);
    let (device_tokens, device_order) = (trial.words(&tokens), trial.words(&order));
    let panel = Panel { data: gradient, first_row: 0, rows: vocabulary as u32, absmax: None, nested: None };
    embedding::backward(&mut trial.rec, device_tokens, device_order, (device_dy, 0.5), &[panel], |data| data);
    trial.expect_vector("gradient", gradient, EXACT, move || {
        added(&before, &embedding::twin::backward(&tokens, &dy, vocabulary, hidden), 0.5)
    });
    Amount::bytes(4 * (rows + vocabulary) * hidden)
}

fn loss(trial: &mut Trial, sizes: Sizes) -> Amount {
    let (rows, vocabulary) = (sizes.rows.min(256), sizes.vocabulary.min(MAX_VOCABULARY));
    let range = sizes.logits;
    let values = scaled(&trial.normal(rows * vocabulary), 4.0);
    let [read, replaced] = [(); 2].map(|()| trial.matrix(rows, vocabulary, &values));
    let labels = tokens(trial, rows, vocabulary);
    let device_labels = trial.words(&labels);
    let (weights, device_weights) = drawn_vector(trial, rows);
    let [losses, same] = [(); 2].map(|()| trial.vector(&vec![f64::NAN; rows]));
    let total = trial.vector(&[1.5]);
    let rec = &mut trial.rec;
    cross_entropy::forward_backward(rec, (read, range), device_labels, device_weights, losses, false);
    cross_entropy::forward_backward(rec, (replaced, range), device_labels, device_weights, same, true);
    cross_entropy::sum_losses(rec, losses, rows as u32, total);
    let shown = cross_entropy::twin::shown(&values, range);
    let want = cross_entropy::twin::forward(&shown, &labels, vocabulary);
    let (again, sum) = (want.clone(), vec![1.5 + want.iter().sum::<f64>()]);
    trial.expect_vector("losses", losses, BOUND, || want);
    trial.expect_vector("losses beside the gradient", same, BOUND, || again);
    trial.expect_vector("sum of losses", total, BOUND, || sum);
    let samples = samples(rows);
    let of_samples = samples.clone();
    trial.expect("gradient", replaced, &samples, BOUND, move || {
        let shown = rows_of(&shown, vocabulary, &of_samples);
        let labels: Vec<u32> = of_samples.iter().map(|row| labels[*row]).collect();
        let weights: Vec<f64> = of_samples.iter().map(|row| weights[*row]).collect();
        let by_shown = cross_entropy::twin::backward(&shown, &labels, vocabulary, &weights);
        cross_entropy::twin::through_range(&by_shown, &shown, range)
    });
    Amount::bytes(16 * rows * vocabulary)
}

fn moved_rows(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    let (x, device_x) = drawn(trial, rows, hidden);
    let (mut before, scattered) = drawn(trial, rows, hidden);
    // Every second row in reverse order, and one that is nowhere.
    let mut indices: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
    indices[0] = rows::NO_ROW;
    let count = indices.len();
    let device_indices = trial.words(&indices);
    let gathered = trial.empty(count, hidden);
    rows::gather_rows(&mut trial.rec, device_x, device_indices, gathered);
    rows::scatter_rows(&mut trial.rec, gathered, device_indices, scattered);
    let got = rows::twin::gather(&x, &indices, hidden);
    rows::twin::scatter(&got, &indices, hidden, &mut before);
    let all: Vec<usize> = (0..rows).collect();
    trial.expect("gathered rows", gathered, &all[..count], EXACT, || got);
    trial.expect("scattered rows", scattered, &all, EXACT, || before);
    Amount::bytes(16 * count * hidden)
}

fn factor_gradients(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    // Other operands for each factor: both leave their partial sums in the same place.
    let [of_a, of_b] = [(); 2].map(|()| (drawn(trial, rows, RANK), drawn(trial, rows, hidden)));
    let before = trial.normal(RANK * hidden);
    let [da, db] = [(); 2].map(|()| trial.vector(&before));
    lora_gradient::lora_a(&mut trial.rec, of_a.0.1, of_a.1.1, 0.5, da);
    lora_gradient::lora_b(&mut trial.rec, of_b.0.1, of_b.1.1, 0.5, db);
    let [sum_a, sum_b] =
        [of_a, of_b].map(|((low, _), (wide, _))| lora_gradient::twin::contract(&low, &wide, RANK, hidden));
    let sum_b: Vec<f64> = (0..RANK * hidden).map(|i| sum_b[i % RANK * hidden + i / RANK]).collect();
    let [want_a, want_b] = [sum_a, sum_b].map(|sum| added(&before, &sum, 0.5));
    trial.expect_vector("dA", da, BOUND, || want_a);
    trial.expect_vector("dB", db, BOUND, || want_b);
    Amount { flops: 4.0 * (rows * RANK * hidden) as f64, bytes: 8.0 * (rows * (hidden + RANK)) as f64, linear: false }
}

fn full_gradient(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    let outs = (MAX_GRADIENT / hidden).max(4);
    let ((dy, device_dy), (x, device_x)) = (drawn(trial, rows, outs), drawn(trial, rows, hidden));
    let before = trial.normal(outs * hidden);
    // The gradient stands where the values of the weight would.
    let (weight, before) = trial.weight(Storage::Float(Float::F32), [outs, hidden], &before, 1);
    weight_gradient::add(&mut trial.rec, device_dy, device_x, &weight, |data| data);
    trial.expect_vector("dW", weight.panels[0].data, BOUND, move || {
        added(&before, &weight_gradient::twin::gradient(&dy, &x, outs, hidden), 1.0)
    });
    Amount {
        flops: 2.0 * (rows * outs * hidden) as f64,
        bytes: 4.0 * (rows * (hidden + outs) + 2 * outs * hidden) as f64,
        linear: false,
    }
}

fn column_gradients(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, norm, .. } = sizes;
    let ((x, device_x), (dy, device_dy)) = (drawn(trial, rows, hidden), drawn(trial, rows, hidden));
    let before = trial.normal(hidden);
    let [bias, gain] = [(); 2].map(|()| trial.vector(&before));
    let scales = trial.vector(&vec![f64::NAN; rows]);
    column_gradient::bias(&mut trial.rec, device_dy, bias);
    column_gradient::gain(&mut trial.rec, device_x, norm.eps, device_dy, scales, gain);
    let of_bias = added(&before, &column_gradient::twin::bias(&dy, hidden), 1.0);
    let of_gain = added(&before, &column_gradient::twin::gain(&x, f64::from(norm.eps), &dy, hidden), 1.0);
    trial.expect_vector("bias", bias, BOUND, || of_bias);
    trial.expect_vector("gain", gain, BOUND, || of_gain);
    Amount::bytes(16 * rows * hidden)
}

fn convolved(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, taps, .. } = sizes;
    // The twin of a row reads those around it, so that all are compared.
    let rows = rows.min(256);
    let positions: Vec<u32> = (0..rows as u32).map(|row| row % 29).collect();
    let (inputs, device_inputs) = drawn(trial, rows, 3 * hidden);
    let ((weights, device_weights), (dout, device_dout)) =
        (drawn_vector(trial, hidden * taps), drawn(trial, rows, hidden));
    let before = trial.normal(hidden * taps);
    let of_weights = trial.vector(&before);
    let (out, dinputs) = (trial.empty(rows, hidden), trial.empty(rows, 3 * hidden));
    let terms = trial.empty(rows, hidden * taps);
    let device_positions = trial.words(&positions);
    let of = short_conv::Convolution {
        positions: device_positions,
        weights: device_weights,
        taps: taps as u32,
        inputs: device_inputs,
    };
    short_conv::forward(&mut trial.rec, &of, None, out);
    short_conv::backward(&mut trial.rec, &of, device_dout, dinputs);
    short_conv::weight_gradient(&mut trial.rec, &of, device_dout, terms, of_weights);
    let all: Vec<usize> = (0..rows).collect();
    let twin = short_conv::twin::Sizes { positions: &positions, channels: hidden, taps };
    let want = short_conv::twin::forward(twin, &inputs, &weights);
    let gradient = short_conv::twin::backward(twin, &inputs, &weights, &dout);
    let gradient_of_weights = added(&before, &short_conv::twin::weight_gradient(twin, &inputs, &dout), 1.0);
    trial.expect("convolution", out, &all, BOUND, || want);
    trial.expect("gradient of its input", dinputs, &all, BOUND, || gradient);
    trial.expect_vector("gradient of its weights", of_weights, BOUND, || gradient_of_weights);
    Amount::bytes(4 * rows * hidden * (11 + 2 * taps))
}

/// What both optimizers share: the gradients, the device's views of a step, and the factor that clips.
struct Step {
    params: Vec<f64>,
    grads: Vec<f64>,
    device_params: View,
    device_grads: View,
    hyper: View,
    state: View,
    clip: f64,
}

fn clipped(trial: &mut Trial, sizes: Sizes) -> Step {
    let count = (4 * RANK * sizes.hidden).next_multiple_of(4);
    let ((params, device_params), (grads, device_grads)) = (drawn_vector(trial, count), drawn_vector(trial, count));
    let words: [u32; 8] = bytemuck::cast(SETTINGS.hyper(0.02, 1));
    let hyper = trial.words(&words);
    let partials = trial.vector(&vec![f64::NAN; (adamw::partials_bytes(&[device_grads]) / 4) as usize]);
    let state = trial.vector(&[f64::NAN; 4]);
    adamw::grad_norm(&mut trial.rec, &[device_grads], hyper, partials, state);
    let norm = adamw::twin::norm(&grads);
    let clip = adamw::twin::clip(&SETTINGS, norm);
    trial.expect_vector("norm and clipping", state, BOUND, move || vec![norm, clip, 1.0]);
    Step { params, grads, device_params, device_grads, hyper, state, clip }
}

fn optimizer(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Step { params, grads, device_params, device_grads, hyper, state, clip } = clipped(trial, sizes);
    let count = params.len();
    let [m, v] = [(); 2].map(|()| trial.vector(&vec![0.0; count]));
    adamw::step(&mut trial.rec, device_params, device_grads, m, v, state, hyper);
    let mut range = adamw::twin::Range::new(&params);
    adamw::twin::step(&mut range, &grads, clip, &SETTINGS, 0.02, 1);
    trial.expect_vector("parameters", device_params, EXACT, || range.params);
    trial.expect_vector("first moment", m, BOUND, || range.m);
    trial.expect_vector("second moment", v, BOUND, || range.v);
    Amount::bytes(32 * count)
}

fn optimizer_8bit(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Step { params, grads, device_params, device_grads, hyper, state, clip } = clipped(trial, sizes);
    let count = params.len();
    let blocks = adamw8bit::blocks(count as u64) as usize;
    let codes = adamw8bit::ZERO_CODES
        .map(|code| trial.words(&vec![u32::from_le_bytes([code; 4]); blocks * adamw8bit::BLOCK as usize / 4]));
    let moments = adamw8bit::CodedMoments { codes, scales: trial.vector(&vec![0.0; 2 * blocks]) };
    let tables = trial.vector(&adamw8bit::tables().map(f64::from));
    adamw8bit::step(&mut trial.rec, device_params, device_grads, moments, tables, state, hyper);
    let mut range = adamw8bit::twin::Range::new(&params);
    adamw8bit::twin::step(&mut range, &grads, clip, &SETTINGS, 0.02, 1);
    let scales: Vec<f64> =
        range.scales[0].iter().zip(&range.scales[1]).flat_map(|(m, v)| [f64::from(*m), f64::from(*v)]).collect();
    trial.expect_vector("parameters", device_params, EXACT, || range.params);
    trial.expect_vector("scales of the moments", moments.scales, BOUND, || scales);
    Amount::bytes(16 * count)
}

fn dropped(trial: &mut Trial, sizes: Sizes) -> Amount {
    const SEED: u32 = 77;
    const SITE: u32 = 5;
    const P: f32 = 0.3;
    let Sizes { rows, hidden, .. } = sizes;
    let ((x, device_x), (before, dx)) = (drawn(trial, rows, hidden), drawn(trial, rows, hidden));
    let y = trial.empty(rows, hidden);
    let mask = dropout::Mask { site: SITE, p: P, seed: trial.words(&[SEED]) };
    dropout::forward(&mut trial.rec, device_x, y, mask);
    dropout::backward_add(&mut trial.rec, device_x, dx, mask, 0.5);
    let want = dropout::twin::forward(&x, SEED, SITE, P);
    let sum = added(&before, &want, 0.5);
    let all: Vec<usize> = (0..rows).collect();
    trial.expect("y", y, &all, EXACT, || want);
    trial.expect("dx", dx, &all, EXACT, || sum);
    Amount::bytes(20 * rows * hidden)
}

fn sum_and_scale(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    let ((x, device_x), (y, device_y)) = (drawn(trial, rows, hidden), drawn(trial, rows, hidden));
    let half = trial.empty(rows, hidden);
    scale::scale(&mut trial.rec, device_x, 0.5, half);
    add::add(&mut trial.rec, half, device_y);
    let samples = samples(rows);
    let [x, y] = [&x, &y].map(|values| rows_of(values, hidden, &samples));
    let sum = added(&y, &x, 0.5);
    trial.expect("scaled", half, &samples, EXACT, move || scaled(&x, 0.5));
    trial.expect("sum", device_y, &samples, EXACT, || sum);
    Amount::bytes(20 * rows * hidden)
}

fn in_bf16(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { rows, hidden, .. } = sizes;
    let (x, device_x) = drawn(trial, rows, hidden);
    let packed = trial.words(&vec![0; (bf16::packed_bytes(device_x).div_ceil(4)) as usize]);
    let y = trial.empty(rows, hidden);
    bf16::pack(&mut trial.rec, device_x, packed);
    bf16::unpack(&mut trial.rec, packed, y);
    let samples = samples(rows);
    let x = rows_of(&x, hidden, &samples);
    trial.expect("there and back", y, &samples, EXACT, move || bf16::twin::there_and_back(&x));
    Amount::bytes(12 * rows * hidden)
}

fn quantized(trial: &mut Trial, sizes: Sizes) -> Amount {
    let code = Code4::Nf4;
    let count = 64 * sizes.hidden;
    let values: Vec<f32> = trial.normal(count).iter().map(|v| *v as f32 * 0.02).collect();
    let zeros = vec![0.0; count];
    let (weight, _) = trial.weight(code.storage(true), [64, sizes.hidden], &zeros, 1);
    let panel = weight.panels[0];
    let blocks = count.div_ceil(code.block() as usize);
    let scales = trial.vector(&vec![0.0; blocks]);
    let source = trial.words(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    let (table, map) = (trial.words(&quantize::code_words(code)), trial.words(&quantize::map_words()));
    let piece = quantize::Piece { source, from: Float::F32, elements: count as u32, first_block: 0 };
    quantize::blocks(&mut trial.rec, piece, code, table, panel.data, scales);
    quantize::absmax(&mut trial.rec, scales, blocks as u32, map, &panel);
    let want = quant::quantize(&values, code, true);
    trial.expect_bytes("codes", panel.data, want.packed);
    if let (Scales::Nested { codes, absmax, offset }, Some(of_blocks), Some(nested)) =
        (want.scales, panel.absmax, panel.nested)
    {
        trial.expect_bytes("codes of the scales", of_blocks, codes);
        let map = quant::dynamic_map().iter().copied();
        let nested_scales = map.chain([offset]).chain(absmax);
        trial.expect_bytes("scales of the scales", nested, nested_scales.flat_map(f32::to_le_bytes).collect());
    }
    // The codes take some twenty operations a value.
    Amount { flops: 20.0 * count as f64, bytes: 4.6 * count as f64, linear: false }
}
