//! The formulas in plain loops, in f64, state by state; the reference of every variant.

use super::{Gradients, Operands, Shape};
use crate::gpu::View;
use crate::ops::experiment::Experiment;

/// The sizes of a layer, with the position of each row.
#[derive(Clone, Copy)]
pub(crate) struct Sizes<'a> {
    pub shape: Shape,
    pub positions: &'a [u32],
}

/// The values that the rule reads, in the order of [`super::Operands`].
#[derive(Clone)]
pub(crate) struct Values {
    pub qkv: Vec<f64>,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub a_log: Vec<f64>,
    pub dt_bias: Vec<f64>,
}

/// Values that decay as slowly as those of a trained model: memory reaches over tens to hundreds of rows.
pub(crate) fn values(experiment: &mut Experiment, shape: Shape, rows: usize) -> Values {
    let heads = shape.value_heads as usize;
    let moved = |values: Vec<f64>, by: f64| values.iter().map(|v| f64::from((v + by) as f32)).collect();
    Values {
        qkv: experiment.normal(rows * shape.qkv_cols() as usize),
        a: experiment.normal(rows * heads),
        b: experiment.normal(rows * heads),
        a_log: experiment.normal(heads),
        dt_bias: moved(experiment.normal(heads), -3.0),
    }
}

/// The values on the device, with scratch of unknown content.
pub(crate) fn operands(experiment: &mut Experiment, shape: Shape, positions: &[u32], of: &Values) -> Operands {
    let (rows, heads) = (positions.len(), shape.value_heads as usize);
    Operands {
        shape,
        positions: experiment.words(positions),
        qkv: experiment.matrix(rows, shape.qkv_cols() as usize, &of.qkv),
        a: experiment.matrix(rows, heads, &of.a),
        b: experiment.matrix(rows, heads, &of.b),
        a_log: experiment.vector(&of.a_log),
        dt_bias: experiment.vector(&of.dt_bias),
        factors: experiment.empty(rows, shape.factor_cols() as usize),
        pairs: experiment.vector(&vec![f64::NAN; (shape.pairs_bytes(rows as u32) / 4) as usize]),
    }
}

/// Places for the gradients beside that of the result, in scratch of any content.
pub(crate) fn gradients(
    experiment: &mut Experiment,
    shape: Shape,
    dout: &[f64],
    of_vectors: Option<[View; 2]>,
) -> Gradients {
    let (heads, width) = (shape.value_heads as usize, shape.out_cols() as usize);
    let rows = dout.len() / width;
    Gradients {
        dout: experiment.matrix(rows, width, dout),
        scratch: experiment.vector(&vec![f64::NAN; (shape.scratch_bytes(rows as u32) / 4) as usize]),
        dqkv: experiment.empty(rows, shape.qkv_cols() as usize),
        da: experiment.empty(rows, heads),
        db: experiment.empty(rows, heads),
        of_vectors,
    }
}

const EPS: f64 = 1e-6;

/// The row of one head as the rule takes it.
struct Row {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// `1 / sqrt(|x|^2 + eps)` of the raw query and of the raw key.
    lengths: [f64; 2],
    /// `e^g`, or 0 where the sequence begins.
    alpha: f64,
    /// g, beta and `a + dt_bias`.
    g: f64,
    beta: f64,
    raw: f64,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Sizes<'_> {
    /// Key dimension, value dimension, value heads and columns.
    fn sizes(self) -> [usize; 4] {
        let Shape { value_heads, key_dim, value_dim, .. } = self.shape;
        [key_dim, value_dim, value_heads, self.shape.qkv_cols()].map(|n| n as usize)
    }

    /// Where q, k and v of a row's head begin in `qkv`.
    fn places(self, row: usize, head: usize) -> [usize; 3] {
        let [dk, dv, heads, cols] = self.sizes();
        let key_heads = self.shape.key_heads as usize;
        let key_head = head / (heads / key_heads);
        let begin = row * cols;
        [begin + key_head * dk, begin + (key_heads + key_head) * dk, begin + 2 * key_heads * dk + head * dv]
    }

    fn row(self, of: &Values, row: usize, head: usize) -> Row {
        let [dk, dv, heads, _] = self.sizes();
        let [q, k, v] = self.places(row, head);
        let [q, k] = [q, k].map(|at| &of.qkv[at..at + dk]);
        let lengths = [q, k].map(|x| 1.0 / (dot(x, x) + EPS).sqrt());
        let raw = of.a[row * heads + head] + of.dt_bias[head];
        let g = -of.a_log[head].exp() * (1.0 + raw.exp()).ln();
        Row {
            q: q.iter().map(|x| x * lengths[0] / (dk as f64).sqrt()).collect(),
            k: k.iter().map(|x| x * lengths[1]).collect(),
            v: of.qkv[v..v + dv].to_vec(),
            lengths,
            alpha: if self.positions[row] == 0 { 0.0 } else { g.exp() },
            g,
            beta: sigmoid(of.b[row * heads + head]),
            raw,
        }
    }
}

/// The product of a state, `[key_dim][value_dim]`, with a vector of values.
fn times(state: &[f64], values: &[f64]) -> Vec<f64> {
    state.chunks_exact(values.len()).map(|row| dot(row, values)).collect()
}

/// The product of the transpose of a state with a key.
fn transposed(state: &[f64], key: &[f64]) -> Vec<f64> {
    let dv = state.len() / key.len();
    (0..dv).map(|j| key.iter().enumerate().map(|(i, k)| state[i * dv + j] * k).sum()).collect()
}

fn add_outer(state: &mut [f64], key: &[f64], values: &[f64]) {
    for (row, k) in state.chunks_exact_mut(values.len()).zip(key) {
        row.iter_mut().zip(values).for_each(|(s, v)| *s += k * v);
    }
}

/// A row's decayed state, the difference between its value and what that held, and the state behind the row.
fn step(of: &Row, state: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let decayed: Vec<f64> = state.iter().map(|s| of.alpha * s).collect();
    let held = transposed(&decayed, &of.k);
    let difference: Vec<f64> = of.v.iter().zip(held).map(|(v, m)| v - m).collect();
    let mut next = decayed.clone();
    add_outer(&mut next, &of.k, &difference.iter().map(|r| of.beta * r).collect::<Vec<_>>());
    (decayed, difference, next)
}

/// The result, `[rows, value_heads * value_dim]`.
pub(crate) fn forward(of: Sizes, values: &Values) -> Vec<f64> {
    let [dk, dv, heads, _] = of.sizes();
    let mut out = vec![0.0; of.positions.len() * heads * dv];
    for head in 0..heads {
        let mut state = vec![0.0; dk * dv];
        for row in 0..of.positions.len() {
            let own = of.row(values, row, head);
            state = step(&own, &state).2;
            out[(row * heads + head) * dv..][..dv].copy_from_slice(&transposed(&state, &own.q));
        }
    }
    out
}

/// The gradients of all values.
pub(crate) fn backward(of: Sizes, values: &Values, dout: &[f64]) -> Values {
    let [dk, dv, heads, _] = of.sizes();
    let zeros = |like: &[f64]| vec![0.0; like.len()];
    let mut to = Values {
        qkv: zeros(&values.qkv),
        a: zeros(&values.a),
        b: zeros(&values.b),
        a_log: zeros(&values.a_log),
        dt_bias: zeros(&values.dt_bias),
    };
    for head in 0..heads {
        let mut states = vec![vec![0.0; dk * dv]];
        for row in 0..of.positions.len() {
            let own = of.row(values, row, head);
            states.push(step(&own, &states[row]).2);
        }
        let mut dstate = vec![0.0; dk * dv];
        for row in (0..of.positions.len()).rev() {
            let own = of.row(values, row, head);
            let (decayed, difference, _) = step(&own, &states[row]);
            let d = &dout[(row * heads + head) * dv..][..dv];
            add_outer(&mut dstate, &own.q, d);
            let dq = times(&states[row + 1], d);
            let dwritten = transposed(&dstate, &own.k);
            let written: Vec<f64> = difference.iter().map(|r| own.beta * r).collect();
            let mut dk_of = times(&dstate, &written);
            let dbeta = dot(&dwritten, &difference);
            let dheld: Vec<f64> = dwritten.iter().map(|d| -own.beta * d).collect();
            dk_of.iter_mut().zip(times(&decayed, &dheld)).for_each(|(d, more)| *d += more);
            add_outer(&mut dstate, &own.k, &dheld);
            let dg = own.alpha * dot(&dstate, &states[row]);
            dstate.iter_mut().for_each(|d| *d *= own.alpha);

            let at = row * heads + head;
            let slope = -values.a_log[head].exp() * sigmoid(own.raw);
            to.a[at] = dg * slope;
            to.dt_bias[head] += dg * slope;
            to.a_log[head] += dg * own.g;
            to.b[at] = dbeta * own.beta * (1.0 - own.beta);
            let [q, k, v] = of.places(row, head);
            for (j, d) in dwritten.iter().enumerate() {
                to.qkv[v + j] = own.beta * d;
            }
            let scale = 1.0 / (dk as f64).sqrt();
            let unit: Vec<f64> = own.q.iter().map(|q| q / scale).collect();
            let dunit: Vec<f64> = dq.iter().map(|d| d * scale).collect();
            for (place, unit, dunit, length) in [(q, unit, dunit, own.lengths[0]), (k, own.k, dk_of, own.lengths[1])] {
                let along = dot(&unit, &dunit);
                for i in 0..dk {
                    to.qkv[place + i] += length * (dunit[i] - unit[i] * along);
                }
            }
        }
    }
    to
}
