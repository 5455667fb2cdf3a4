//! The cases of linear layers: every shape of the model in the formats that runs use, both directions.

use super::subject::{RANK, Subject};
use super::trial::{Amount, Case, Trial, added, rows_of, sample};
use crate::gpu::{Capabilities, Category, Matrix};
use crate::model::modules::Projection;
use crate::ops::experiment::Stored;
use crate::ops::linear::{self, GradientTerm, LowRank, WorkspaceQuery, twin};
use crate::ops::weight::{Rows, Weight};
use crate::quant::format::{Code4, Float, Storage};

/// The most elements of a weight, which is made on the host. A larger one is examined in part.
const MAX_ELEMENTS: usize = 1 << 24;
/// The most multiply-adds of a twin, by which its rows are chosen.
const TWIN_WORK: usize = 1 << 26;
/// Products in f32, and those of cooperative matrices, whose factors are f16.
const BOUND: f64 = 1e-5;
const MATRIX_BOUND: f64 = 2e-3;
const SCALE: f32 = 0.75;

/// A linear layer and its input.
#[derive(Clone, Copy)]
struct Layer {
    storage: Storage,
    out: usize,
    inp: usize,
    rank: usize,
    rows: usize,
}

impl Layer {
    fn query(self) -> WorkspaceQuery {
        let [out_features, in_features, rank, rows] = [self.out, self.inp, self.rank, self.rows].map(|n| n as u32);
        WorkspaceQuery { out_features, in_features, rank, rows }
    }

    fn amount(self) -> Amount {
        let Self { storage, out, inp, rank, rows } = self;
        let (values, scales) = storage.bytes((out * inp) as u64);
        Amount {
            flops: 2.0 * rows as f64 * (out as f64 * (inp + rank) as f64),
            bytes: (values + scales) as f64 + 4.0 * (rows * (out + inp)) as f64,
            linear: true,
        }
    }

    fn samples(self) -> Vec<usize> {
        sample(self.rows, (TWIN_WORK / (self.out * self.inp).max(1)).clamp(2, 64))
    }
}

pub(super) fn bound(trial: &Trial) -> f64 {
    if linear::by_matrices(&trial.rec) { MATRIX_BOUND } else { BOUND }
}

pub(super) fn all(subject: &Subject, capabilities: &Capabilities) -> Vec<Case> {
    let nf4 = Code4::Nf4.storage(true);
    let bf16 = Storage::Float(Float::Bf16);
    let config = &subject.config;
    let mut shapes: Vec<(&str, (usize, usize))> = Vec::new();
    for (name, projection) in
        [("gate", Projection::Gate), ("down", Projection::Down), ("q", Projection::Q), ("k", Projection::K)]
    {
        let shape = config.projection_shape(projection);
        if shapes.iter().all(|(_, known)| *known != shape) {
            shapes.push((name, shape));
        }
    }
    if subject.quick {
        shapes.truncate(2);
    }
    let mut all = Vec::new();
    let mut add = |name: String, layer: Layer, record: fn(&mut Trial, Layer) -> Amount| {
        let name = format!("{name}, {} x {} x {}", layer.rows, layer.out, layer.inp);
        all.push(Case { name, record: Box::new(move |trial| record(trial, layer)) });
    };
    for (name, (out, inp)) in &shapes {
        let (out, inp) = ((*out).min((MAX_ELEMENTS / inp).max(1)), *inp);
        for storage in [nf4, bf16] {
            let layer = Layer { storage, out, inp, rank: RANK, rows: subject.rows };
            add(format!("linear forward {name} {}", storage.name()), layer, forward);
            add(format!("linear input gradient {name} {}", storage.name()), layer, gradient);
            for rows in [1, 4] {
                let layer = Layer { rows, ..layer };
                add(format!("linear of few rows {name} {}", storage.name()), layer, forward);
            }
        }
    }
    let (_, (out, inp)) = shapes[0];
    let out = out.min((MAX_ELEMENTS / inp).max(1));
    let factor = Layer { storage: Storage::Float(Float::F32), out: RANK, inp, rank: 0, rows: subject.rows };
    add("LoRA factor A forward".to_owned(), factor, forward);
    add("LoRA factor A gradient".to_owned(), factor, gradient);
    if !subject.quick {
        for storage in Storage::ALL.into_iter().filter(|storage| ![nf4, bf16].contains(storage)) {
            let layer = Layer { storage, out: out.min(1000), inp, rank: RANK, rows: subject.rows.min(256) };
            add(format!("linear forward {}", storage.name()), layer, forward);
            add(format!("linear input gradient {}", storage.name()), layer, gradient);
        }
    }
    all.extend(shared(subject, capabilities, nf4));
    all
}

fn weights(trial: &mut Trial, layer: Layer) -> Vec<f64> {
    trial.normal(layer.out * layer.inp).iter().map(|v| f64::from(*v as f32 * 0.3)).collect()
}

fn low_rank(trial: &mut Trial, rows: usize, rank: usize, width: usize) -> (Option<LowRank>, Vec<f64>, Vec<f64>) {
    let (product, factor) = (trial.normal(rows * rank), trial.normal(rank * width));
    let term = (rank > 0).then(|| LowRank {
        product: trial.matrix(rows, rank, &product),
        factor: trial.vector(&factor),
        scale: SCALE,
    });
    (term, product, factor)
}

/// `y = x W^T + s (x A^T) B^T`.
fn forward(trial: &mut Trial, layer: Layer) -> Amount {
    let Layer { storage, out, inp, rank, rows } = layer;
    trial.reserve_panel(layer.query());
    let values = weights(trial, layer);
    let (weight, held) = trial.weight(storage, [out, inp], &values, 1);
    let x = trial.normal(rows * inp);
    let (device_x, y) = (trial.matrix(rows, inp, &x), trial.empty(rows, out));
    let (term, product, factor) = low_rank(trial, rows, rank, out);
    linear::forward(&mut trial.rec, device_x, &weight, term, y, false);
    let (samples, bound) = (layer.samples(), bound(trial));
    let (x, product) = (rows_of(&x, inp, &samples), rows_of(&product, rank, &samples));
    let count = samples.len();
    trial.expect("y", y, &samples, bound, move || {
        let base = twin::multiply(&x, count, inp, out, |k, n| held[n * inp + k]);
        let lora = twin::multiply(&product, count, rank, out, |j, n| factor[n * rank + j]);
        added(&base, &lora, f64::from(SCALE))
    });
    layer.amount()
}

/// `dx = dy W + s (dy B) A`.
fn gradient(trial: &mut Trial, layer: Layer) -> Amount {
    let Layer { storage, out, inp, rank, rows } = layer;
    trial.reserve_panel(layer.query());
    let values = weights(trial, layer);
    let (weight, held) = trial.weight(storage, [out, inp], &values, 1);
    let dy = trial.normal(rows * out);
    let (device_dy, dx) = (trial.matrix(rows, out, &dy), trial.empty(rows, inp));
    let (term, product, factor) = low_rank(trial, rows, rank, inp);
    linear::input_gradient(&mut trial.rec, device_dy, &weight, term, dx, false);
    let (samples, bound) = (layer.samples(), bound(trial));
    let (dy, product) = (rows_of(&dy, out, &samples), rows_of(&product, rank, &samples));
    let count = samples.len();
    trial.expect("dx", dx, &samples, bound, move || {
        let mut sums = vec![0.0; count * inp];
        // Row by row of the weight, which lies that way in memory.
        for n in 0..out {
            let row = &held[n * inp..][..inp];
            for (sums, dy) in sums.chunks_exact_mut(inp).zip(dy.chunks_exact(out)) {
                sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += dy[n] * w);
            }
        }
        let lora = twin::multiply(&product, count, rank, inp, |j, k| factor[j * inp + k]);
        added(&sums, &lora, f64::from(SCALE))
    });
    layer.amount()
}

/// The gradient of an input that several layers read.
fn shared(subject: &Subject, capabilities: &Capabilities, storage: Storage) -> Option<Case> {
    let config = &subject.config;
    let layers = Projection::OF_ATTENTION_INPUT.map(|projection| config.projection_shape(projection));
    let (inp, outs) = (layers[0].1, layers.map(|(out, _)| out));
    let (rows, limit) = (subject.rows, capabilities.max_binding_bytes);
    if outs.iter().sum::<usize>() * inp > MAX_ELEMENTS || layers.iter().any(|layer| layer.1 != inp) {
        return None;
    }
    let [q, k, v] = outs;
    let name = format!("linear input gradient of q, k, v {}, {rows} x {q}+{k}+{v} x {inp}", storage.name());
    let record = move |trial: &mut Trial| {
        let layers = outs.map(|out| Layer { storage, out, inp, rank: RANK, rows });
        trial.reserve_panel(WorkspaceQuery::grouped(layers.map(Layer::query)));
        let matrices = outs.map(|out| Rows { label: "w", out_features: out as u32, bias: false });
        let weights = Weight::plan_contiguous(&mut trial.plan, matrices, storage, inp as u32, limit);
        let widths = outs.map(|out| out as u32);
        let dys = trial.plan.contiguous_matrices(Category::Workspace, "dy", rows as u32, widths);
        let products = trial.plan.contiguous_matrices(Category::Workspace, "dy B", rows as u32, [RANK as u32; 3]);
        let bytes = [4 * (RANK * inp) as u64; 3];
        let factors = trial.plan.alloc_contiguous(Category::Workspace, "lora_A", bytes);
        let samples = sample(rows, 8);
        let count = samples.len();
        let mut parts = Vec::new();
        for (i, layer) in layers.into_iter().enumerate() {
            let stored = Stored::of(storage, &self::weights(trial, layer));
            let panel = weights[i].panels[0];
            trial.fill(panel.data, &stored.data);
            panel.absmax.iter().for_each(|view| trial.fill(*view, &stored.absmax));
            panel.nested.iter().for_each(|view| trial.fill(*view, &stored.nested));
            let (dy, dyb, a) = (trial.normal(rows * layer.out), trial.normal(rows * RANK), trial.normal(RANK * inp));
            trial.fill_matrix(dys[i], &dy);
            trial.fill_matrix(products[i], &dyb);
            trial.fill(factors[i], &a.iter().map(|v| (*v as f32).to_bits()).collect::<Vec<_>>());
            parts.push((layer.out, rows_of(&dy, layer.out, &samples), stored.held, rows_of(&dyb, RANK, &samples), a));
        }
        let low_rank = |i: usize| Some(LowRank { product: products[i], factor: factors[i], scale: SCALE });
        let terms: [_; 3] =
            std::array::from_fn(|i| GradientTerm { dy: dys[i], weight: &weights[i], low_rank: low_rank(i) });
        let dx: Matrix = trial.empty(rows, inp);
        linear::sum_of_input_gradients(&mut trial.rec, &terms, dx);
        let bound = bound(trial);
        trial.expect("dx", dx, &samples, bound, move || {
            let mut sums = vec![0.0; count * inp];
            for (out, dy, w, dyb, a) in parts {
                let base = twin::multiply(&dy, count, out, inp, |n, k| w[n * inp + k]);
                let lora = twin::multiply(&dyb, count, RANK, inp, |j, k| a[j * inp + k]);
                sums = added(&added(&sums, &base, 1.0), &lora, f64::from(SCALE));
            }
            sums
        });
        let amounts = layers.map(Layer::amount);
        let sum = |of: fn(&Amount) -> f64| amounts.iter().map(of).sum();
        Amount { flops: sum(|amount| amount.flops), bytes: sum(|amount| amount.bytes), linear: true }
    };
    Some(Case { name, record: Box::new(record) })
}
