//! The cases of mixtures of experts: every kernel of a layer with experts, forward and backward.

use super::subject::Subject;
use super::trial::{Amount, Case, Trial};
use crate::gpu::View;
use crate::ops::experts::{self, Choice, Source, Tables, twin};
use crate::ops::glu::{self, Activation};
use crate::quant::format::Code4;

/// The most experts of a layer, and features of each: their weights are made on the host.
const MAX_EXPERTS: usize = 32;
const MAX_INNER: usize = 64;
/// Rows of a pass. All of them go through the twin.
const ROWS: usize = 32;
const BOUND: f64 = 1e-5;

#[derive(Clone, Copy)]
struct Sizes {
    choice: Choice,
    biased: bool,
    with_biases: bool,
    activation: Activation,
    rows: usize,
    hidden: usize,
    inner: usize,
}

/// None for a model without experts.
pub(super) fn all(subject: &Subject) -> Vec<Case> {
    let Some(of) = &subject.config.experts else { return Vec::new() };
    let (count, hidden, inner) = (of.count.min(MAX_EXPERTS), subject.config.hidden_size, of.intermediate_size);
    let choice = Choice { experts: count as u32, top: of.top.min(count) as u32, ..of.choice() };
    // One row takes tiles of one slot, many rows those of several.
    let of_rows = |rows: usize| {
        let (biased, with_biases, activation) = (of.biased, of.with_biases, subject.config.activation);
        let sizes = Sizes { choice, biased, with_biases, activation, rows, hidden, inner: inner.min(MAX_INNER) };
        let name = format!("{} of {count} experts, {rows} x {} x {hidden}", choice.top, sizes.inner);
        Case { name, record: Box::new(move |trial| layer(trial, sizes)) }
    };
    [1, subject.rows.min(ROWS)].map(of_rows).into()
}

fn layer(trial: &mut Trial, sizes: Sizes) -> Amount {
    let Sizes { choice, biased, with_biases, activation, rows, hidden, inner } = sizes;
    let (experts, of, storage) = (choice.experts as usize, (choice, rows as u32), Code4::Nf4.storage(true));
    let mut weights = |shape| trial.expert_weights(storage, experts, shape);
    let ((gate, gate_values), (up, up_values)) = (weights([inner, hidden]), weights([inner, hidden]));
    let (down, down_values) = weights([hidden, inner]);
    let [x, logits, dy] = [hidden, experts, hidden].map(|cols| trial.normal(rows * cols));
    let bias = if biased { trial.normal(experts) } else { Vec::new() };
    let device_bias = biased.then(|| trial.vector(&bias));
    let outputs = if with_biases { [inner, inner, hidden] } else { [0; 3] };
    let biases = outputs.map(|outputs| trial.normal(experts * outputs));
    let device_biases: [Option<View>; 3] =
        std::array::from_fn(|i| (!biases[i].is_empty()).then(|| trial.vector(&biases[i])));
    let device_x = trial.matrix(rows, hidden, &x);
    let (device_logits, device_dy) = (trial.matrix(rows, experts, &logits), trial.matrix(rows, hidden, &dy));
    let [chosen, pair_weights, slots, pairs, tiles] =
        Tables::bytes(choice, rows as u32).map(|bytes| trial.words(&vec![0; bytes as usize / 4]));
    let tables = Tables { chosen, weights: pair_weights, slots, pairs, tiles };
    let counts = trial.words(&vec![0; choice.count_bytes() as usize / 4]);
    let shares = trial.vector(&vec![f64::NAN; rows * choice.top as usize]);
    let slots = choice.slots(rows as u32) as usize;
    let [dgate, dup, act, dact] = [(); 4].map(|()| trial.empty(slots, inner));
    let [out, dout] = [(); 2].map(|()| trial.empty(slots, hidden));
    let [y, dx] = [(); 2].map(|()| trial.empty(rows, hidden));
    let rec = &mut trial.rec;
    experts::route(rec, device_logits, choice, device_bias, &tables);
    experts::sort(rec, rows as u32, choice, &tables, counts);
    experts::forward(rec, (Source::Rows, device_x), (&gate, device_biases[0]), of, &tables, (dgate, 0));
    experts::forward(rec, (Source::Rows, device_x), (&up, device_biases[1]), of, &tables, (dup, 0));
    glu::forward(rec, activation, dgate, dup, act);
    experts::forward(rec, (Source::Slots, act), (&down, device_biases[2]), of, &tables, (out, 0));
    experts::combine(rec, out, choice, &tables, true, (y, 0));
    experts::input_gradient(rec, (Source::Rows, device_dy), &down, of, &tables, (dact, 0), false);
    experts::glu_backward(rec, activation, [dgate, dup, dact], of, &tables, shares);
    if let Some(biases) = device_biases[2] {
        experts::bias_shares(rec, device_dy, biases, choice, &tables, shares);
    }
    experts::input_gradient(rec, (Source::Slots, dgate), &gate, of, &tables, (dout, 0), false);
    experts::input_gradient(rec, (Source::Slots, dup), &up, of, &tables, (dout, 0), true);
    experts::combine(rec, dout, choice, &tables, false, (dx, 0));
    experts::route_backward(rec, device_logits, choice, &tables, shares);
    let weights = gate_values.into_iter().zip(up_values).zip(down_values).map(|((g, u), d)| [g, u, d]).collect();
    let twin = twin::Layer { choice, bias, biases, activation, hidden, weights };
    let want = twin.forward(&x, &logits);
    let (gradient, of_logits) = twin.backward(&x, &logits, &dy);
    let all: Vec<usize> = (0..rows).collect();
    trial.expect("y", y, &all, BOUND, || want);
    trial.expect("dx", dx, &all, BOUND, || gradient);
    trial.expect("gradient of the router", device_logits, &all, BOUND, || of_logits);
    let pairs = (rows * choice.top as usize) as f64;
    let (values, scales) = storage.bytes((3 * experts * inner * hidden) as u64);
    Amount {
        flops: 12.0 * pairs * (inner * hidden) as f64,
        bytes: (values + scales) as f64 + 20.0 * pairs * hidden as f64,
        linear: false,
    }
}
