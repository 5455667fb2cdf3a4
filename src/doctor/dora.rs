//! The case of DoRA: norms of a 4-bit weight, the factors of its outputs, and the gradient of the magnitudes.

use super::subject::{RANK, Subject};
use super::trial::{Amount, Case, Trial, added};
use crate::ops::dora::{self, Outputs, twin};
use crate::ops::linear;
use crate::quant::format::Code4;

/// The most outputs of the layer, and rows of its input: the twin makes the full weight of W + s B A.
const MAX_OUT: usize = 256;
const MAX_ROWS: usize = 64;
const SCALE: f32 = 0.75;
const BOUND: f64 = 1e-5;
/// The squares of norms are sums of terms of both signs.
const NORM_BOUND: f64 = 1e-4;

pub(super) fn case(subject: &Subject) -> Case {
    let (rows, inp) = (subject.rows.min(MAX_ROWS), subject.config.hidden_size);
    let out = inp.min(MAX_OUT);
    let name = format!("DoRA norms, factors and gradient, {rows} x {out} x {inp}");
    Case { name, record: Box::new(move |trial| record(trial, rows, out, inp)) }
}

fn record(trial: &mut Trial, rows: usize, out: usize, inp: usize) -> Amount {
    let storage = Code4::Nf4.storage(true);
    let values = trial.normal(out * inp);
    let (weight, w) = trial.weight(storage, [out, inp], &values, 1);
    let [a, b, m] = [RANK * inp, out * RANK, out].map(|count| trial.normal(count));
    let [x, dy, before] = [rows * inp, rows * out, rows * out].map(|count| trial.normal(count));
    let [bias, gradient] = [(); 2].map(|()| trial.normal(out));
    // The product that the module's formula of the norm takes, `W A^T + s/2 B (A A^T)`.
    let gram = linear::twin::multiply(&a, RANK, inp, RANK, |k, n| a[n * inp + k]);
    let base = linear::twin::multiply(&a, RANK, inp, out, |k, n| w[n * inp + k]);
    let low_rank = linear::twin::multiply(&gram, RANK, RANK, out, |k, n| b[n * RANK + k]);
    let product = trial.matrix(RANK, out, &added(&base, &low_rank, f64::from(SCALE) / 2.0));
    let layer = twin::Layer { w: &w, a: &a, b: &b, scale: f64::from(SCALE), inputs: inp, rank: RANK };
    let (norms, u) = (layer.row_norms(), layer.direction(&x));
    let [device_b, magnitudes, device_bias, device_gradient] = [&b, &m, &bias, &gradient].map(|v| trial.vector(v));
    let [device_u, plain, biased, device_dy, rest] =
        [&u, &u, &u, &dy, &before].map(|values| trial.matrix(rows, out, values));
    let [squares, factors, inverses, start] = [(); 4].map(|()| trial.vector(&vec![f64::NAN; out]));
    let du = trial.empty(rows, out);
    let rec = &mut trial.rec;
    dora::norms(rec, &weight, squares, start);
    dora::factors(rec, Outputs { squares, factors, inverses }, magnitudes, (device_b, product), SCALE);
    dora::rescale(rec, plain, factors, None);
    dora::rescale(rec, biased, factors, Some(device_bias));
    dora::add_rest(rec, device_u, factors, rest);
    dora::scaled(rec, device_dy, factors, 0.0, du);
    dora::magnitude_gradient(rec, device_dy, device_u, inverses, device_gradient);
    let roots = w.chunks(inp).map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
    let factor = |i: usize| m[i % out] / norms[i % out];
    let each = |f: &dyn Fn(usize) -> f64| (0..rows * out).map(f).collect::<Vec<_>>();
    let want_biased = each(&|i| bias[i % out] + factor(i) * (u[i] - bias[i % out]));
    let want_rest = each(&|i| before[i] + (factor(i) - 1.0) * u[i]);
    let want_du = each(&|i| factor(i) * dy[i]);
    let want_gradient = added(&gradient, &layer.magnitude_gradient(&x, &dy, &norms), 1.0);
    let want = layer.forward(&x, &m, &norms);
    let all: Vec<usize> = (0..rows).collect();
    trial.expect_vector("norms of the weight", start, BOUND, || roots);
    trial.expect("y", plain, &all, NORM_BOUND, || want);
    trial.expect("y with a bias", biased, &all, NORM_BOUND, || want_biased);
    trial.expect("y of the rest", rest, &all, NORM_BOUND, || want_rest);
    trial.expect("du", du, &all, NORM_BOUND, || want_du);
    trial.expect_vector("gradient of the magnitudes", device_gradient, NORM_BOUND, || want_gradient);
    let (values, scales) = storage.bytes((out * inp) as u64);
    Amount::bytes((values + scales) as usize + 4 * rows * out * 11)
}
