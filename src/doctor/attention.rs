//! The cases of attention: two sequences in a row forward and backward, and a query of generation.

use super::subject::Subject;
use super::trial::{Amount, Case, Trial};
use crate::ops::attention::{self, Gradients, Operands, Shape, twin};

/// The most rows: the twin's time grows with their square.
const MAX_ROWS: usize = 256;
const BOUND: f64 = 1e-5;

/// The part of attention that a case checks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
    Decode,
}

/// The first key of a row's sequence, of which there are two.
fn start(row: usize, rows: usize) -> usize {
    let second = rows / 3;
    if row < second { 0 } else { second }
}

pub(super) fn all(subject: &Subject) -> Vec<Case> {
    let config = &subject.config;
    let [heads, kv_heads, head_dim] = [config.num_heads, config.num_kv_heads, config.head_dim].map(|n| n as u32);
    // The groups of heads are alike: a few of them are enough.
    let groups = kv_heads.min(if subject.quick { 2 } else { 4 });
    let shape = Shape { heads: heads / kv_heads * groups, kv_heads: groups, head_dim };
    let scores = Scores { scale: config.attention_scale, cap: config.attention_softcap, sinks: config.attention_sinks };
    let rows = subject.rows.min(MAX_ROWS);
    let case = |name: &str, pass| Case {
        name: format!("{name}, {rows} rows, {} heads of {head_dim}", shape.heads),
        record: Box::new(move |trial| record(trial, shape, scores, rows, pass)),
    };
    vec![
        case("attention forward", Pass::Forward),
        case("attention backward", Pass::Backward),
        case("attention of one row", Pass::Decode),
    ]
}

/// What a model makes of the scores.
#[derive(Clone, Copy)]
struct Scores {
    scale: f32,
    cap: Option<f32>,
    sinks: bool,
}

fn record(trial: &mut Trial, shape: Shape, scores: Scores, keys: usize, pass: Pass) -> Amount {
    let Scores { scale, cap, sinks } = scores;
    let rows = if pass == Pass::Decode { 1 } else { keys };
    let [heads, kv_heads, head_dim] = [shape.heads, shape.kv_heads, shape.head_dim].map(|n| n as usize);
    let (q_cols, k_cols) = (heads * head_dim, kv_heads * head_dim);
    let (q, k, v) = (trial.normal(rows * q_cols), trial.normal(keys * k_cols), trial.normal(keys * k_cols));
    let dout = trial.normal(rows * q_cols);
    let range = |row: usize| match pass {
        Pass::Decode => [0, keys as u32],
        _ => [start(row, keys) as u32, row as u32 + 1],
    };
    let key_ranges: Vec<[u32; 2]> = (0..rows).map(range).collect();
    let end = |row: usize| if start(row, keys) == 0 && keys > 2 { keys / 3 } else { keys };
    let query_ranges: Vec<[u32; 2]> = (0..rows).map(|row| [row as u32, end(row) as u32]).collect();
    let sinks = if sinks { trial.normal(heads) } else { Vec::new() };
    let operands = Operands {
        shape,
        scale,
        cap,
        sinks: (!sinks.is_empty()).then(|| trial.vector(&sinks)),
        q: trial.matrix(rows, q_cols, &q),
        k: trial.matrix(keys, k_cols, &k),
        v: trial.matrix(keys, k_cols, &v),
        key_ranges: trial.words(key_ranges.as_flattened()),
        out: trial.empty(rows, q_cols),
        lse: trial.vector(&vec![f64::NAN; rows * heads]),
    };
    let by_twin = twin::Operands {
        shape,
        scale: f64::from(scale),
        cap: cap.map(f64::from),
        sinks: &sinks,
        q: &q,
        k: &k,
        v: &v,
        key_ranges: &key_ranges,
    };
    let all: Vec<usize> = (0..rows).collect();
    let pairs: u32 = key_ranges.iter().map(|[from, to]| to - from).sum();
    let product = 2.0 * f64::from(pairs) * q_cols as f64;
    let bytes = 8.0 * (rows * q_cols + keys * k_cols) as f64;
    attention::forward(&mut trial.rec, &operands);
    let (out, lse) = by_twin.forward();
    if pass != Pass::Backward {
        trial.expect("out", operands.out, &all, BOUND, || out);
        trial.expect_vector("log-sum-exp", operands.lse, BOUND, || lse);
        return Amount { flops: 2.0 * product, bytes, linear: false };
    }
    // The backward pass reads what the forward pass made: the case has that of the twin, and times the backward pass alone.
    trial.rec.commands.clear();
    trial.fill_matrix(operands.out, &out);
    trial.fill(operands.lse, &lse.iter().map(|v| (*v as f32).to_bits()).collect::<Vec<_>>());
    let gradients = Gradients {
        query_ranges: trial.words(query_ranges.as_flattened()),
        dout: trial.matrix(rows, q_cols, &dout),
        scratch: trial.vector(&vec![f64::NAN; shape.scratch_bytes(rows as u32) as usize / 4]),
        dq: trial.empty(rows, q_cols),
        dk: trial.empty(keys, k_cols),
        dv: trial.empty(keys, k_cols),
    };
    attention::backward(&mut trial.rec, &operands, &gradients);
    let (dq, dk, dv) = by_twin.backward(&dout);
    trial.expect("dq", gradients.dq, &all, BOUND, || dq);
    trial.expect("dk", gradients.dk, &all, BOUND, || dk);
    trial.expect("dv", gradients.dv, &all, BOUND, || dv);
    // Five products, and two that are computed again.
    Amount { flops: 5.0 * product, bytes: 2.0 * bytes, linear: false }
}
