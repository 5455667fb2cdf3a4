use super::*;
use crate::ops::testing::{Lab, assert_close, assert_gradient, families};

const BOUND: f64 = 1e-5;

/// Key and query ranges of causal segments of these lengths, laid end to end, each query seeing `window` keys at most.
fn ranges(segments: &[u32], window: u32) -> (Vec<[u32; 2]>, Vec<[u32; 2]>) {
    let (mut keys, mut queries, mut start) = (Vec::new(), Vec::new(), 0);
    for length in segments {
        let end = start + length;
        for i in start..end {
            keys.push([start.max((i + 1).saturating_sub(window)), i + 1]);
            queries.push([i, end.min(i.saturating_add(window))]);
        }
        start = end;
    }
    (keys, queries)
}

fn upload_ranges(lab: &mut Lab, ranges: &[[u32; 2]]) -> View {
    lab.words(ranges.as_flattened())
}

/// One head of k and v beside q's, so that leading dimensions differ from the columns.
fn wide(lab: &mut Lab, rows: usize, cols: usize, values: &[f64]) -> Matrix {
    let padded: Vec<f64> = values.chunks(cols).flat_map(|row| [row, &[f64::NAN; 4]].concat()).collect();
    Matrix { cols: cols as u32, ..lab.matrix(rows, cols + 4, &padded) }
}

struct Results {
    out: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Runs forward and backward, and holds them to the twin.
fn check(family: VariantFamily, shape: Shape, segments: &[u32], window: u32) -> Results {
    check_with(family, shape, segments, window, Beside::default())
}

/// What changes the scores or stands beside them.
#[derive(Clone, Copy, Debug, Default)]
struct Beside {
    cap: Option<f32>,
    /// The size of the heads' sinks; 0 for none.
    sinks: f64,
}

fn check_with(family: VariantFamily, shape: Shape, segments: &[u32], window: u32, beside: Beside) -> Results {
    let Beside { cap, sinks } = beside;
    let mut lab = Lab::for_family(family);
    let (key_ranges, query_ranges) = ranges(segments, window);
    let rows = key_ranges.len();
    let (q_cols, k_cols) = ((shape.heads * shape.head_dim) as usize, (shape.kv_heads * shape.head_dim) as usize);
    let (q, k) = (lab.normal(rows * q_cols), lab.normal(rows * k_cols));
    let (v, dout) = (lab.normal(rows * k_cols), lab.normal(rows * q_cols));
    let scale = 1.5 / (shape.head_dim as f32).sqrt();
    let (gq, gk, gv) =
        (wide(&mut lab, rows, q_cols, &q), wide(&mut lab, rows, k_cols, &k), lab.matrix(rows, k_cols, &v));
    let gdout = lab.matrix(rows, q_cols, &dout);
    let (gkeys, gqueries) = (upload_ranges(&mut lab, &key_ranges), upload_ranges(&mut lab, &query_ranges));
    let (out, dq) = (lab.empty(rows, q_cols), wide(&mut lab, rows, q_cols, &vec![f64::NAN; rows * q_cols]));
    let (dk, dv) = (wide(&mut lab, rows, k_cols, &vec![f64::NAN; rows * k_cols]), lab.empty(rows, k_cols));
    let lse = lab.vector(&vec![f64::NAN; rows * shape.heads as usize]);
    let scratch = lab.vector(&vec![f64::NAN; shape.scratch_bytes(rows as u32) as usize / 4]);
    let sinks: Vec<f64> = match sinks {
        0.0 => Vec::new(),
        size => lab.normal(shape.heads as usize).into_iter().map(|v| f64::from((size * v) as f32)).collect(),
    };
    let gsinks = (!sinks.is_empty()).then(|| lab.vector(&sinks));
    let mut rec = lab.recorder();
    let operands = Operands { shape, scale, cap, sinks: gsinks, q: gq, k: gk, v: gv, key_ranges: gkeys, out, lse };
    forward(&mut rec, &operands);
    backward(&mut rec, &operands, &Gradients { query_ranges: gqueries, dout: gdout, scratch, dq, dk, dv });
    lab.run(&rec);

    let operands = twin::Operands {
        shape,
        scale: f64::from(scale),
        cap: cap.map(f64::from),
        sinks: &sinks,
        q: &q,
        k: &k,
        v: &v,
        key_ranges: &key_ranges,
    };
    let (want_out, want_lse) = operands.forward();
    let (want_dq, want_dk, want_dv) = operands.backward(&dout);
    let mut got_lse = lab.read_vector(lse);
    got_lse.truncate(want_lse.len());
    let got = Results { out: lab.read(out), lse: got_lse, dq: lab.read(dq), dk: lab.read(dk), dv: lab.read(dv) };
    let case = format!("{family:?}, {shape:?}, {segments:?}, window {window}, {beside:?}");
    assert_close(&format!("out, {case}"), &got.out, &want_out, BOUND);
    assert_close(&format!("lse, {case}"), &got.lse, &want_lse, BOUND);
    assert_close(&format!("dq, {case}"), &got.dq, &want_dq, BOUND);
    assert_close(&format!("dk, {case}"), &got.dk, &want_dk, BOUND);
    assert_close(&format!("dv, {case}"), &got.dv, &want_dv, BOUND);
    got
}

const NO_WINDOW: u32 = u32::MAX;

fn shape(heads: u32, kv_heads: u32, head_dim: u32) -> Shape {
    Shape { heads, kv_heads, head_dim }
}

#[test]
fn every_head_dimension_equals_the_twin() {
    for family in families() {
        for head_dim in [4, 8, 16, 20, 64, 80, 96, 128] {
            check(family, shape(2, 1, head_dim), &[37], NO_WINDOW);
        }
    }
}

/// The head sizes of published models, grouped, in odd lengths: one row, fewer and more rows than the variants for software adapters
/// give a lane one each, several segments, and a window.
#[test]
fn the_head_sizes_of_published_models_equal_the_twin() {
    for family in families() {
        // Where lanes exchange values, from FEW_ITEMS rows on each has more of them.
        let long = if family == VariantFamily::Broadcast { FEW_ITEMS as u32 + 5 } else { 71 };
        for head_dim in [64, 80, 96, 128, 256] {
            check(family, shape(4, 2, head_dim), &[1], NO_WINDOW);
            check(family, shape(6, 2, head_dim), &[5, 47, 1, 30], NO_WINDOW);
            check(family, shape(3, 1, head_dim), &[33, long], 45);
        }
    }
}

/// Heads above 256 features: those of Gemma 4's layers without a window, and sizes that fill no whole workgroup.
#[test]
fn the_widest_heads_equal_the_twin() {
    for family in families() {
        for head_dim in [388, MAX_HEAD_DIM] {
            check(family, shape(2, 1, head_dim), &[3, 35], 9);
        }
    }
}

#[test]
fn groups_segments_and_windows_equal_the_twin() {
    for family in families() {
        check(family, shape(3, 3, 16), &[7, 1, 41, 13], NO_WINDOW);
        check(family, shape(8, 1, 16), &[5, 33], NO_WINDOW);
        check(family, shape(4, 2, 16), &[150], NO_WINDOW);
        check(family, shape(4, 2, 16), &[91, 3, 56], 17);
        check(family, shape(2, 2, 8), &[70], 1);
        check(family, shape(1, 1, 8), &[1], NO_WINDOW);
    }
}

/// Sinks that take little of the softmax, much of it, or nearly all, so that most rows have an output near 0.
#[test]
fn sinks_equal_the_twin() {
    for family in families() {
        for (head_dim, sinks) in [(8, 1.0), (64, 5.0), (64, 40.0), (20, 300.0)] {
            let beside = Beside { sinks, ..Beside::default() };
            let with = check_with(family, shape(4, 2, head_dim), &[37, 1, 20], 25, beside);
            let without = check(family, shape(4, 2, head_dim), &[37, 1, 20], 25);
            assert!(with.out != without.out && with.dk != without.dk);
        }
    }
}

/// Bounds so low that most scores feel them.
#[test]
fn bounded_scores_equal_the_twin() {
    for family in families() {
        for (head_dim, cap) in [(8, 1.5), (64, 0.7)] {
            let beside = Beside { cap: Some(cap), ..Beside::default() };
            let bounded = check_with(family, shape(4, 2, head_dim), &[37, 1, 20], 25, beside);
            let free = check(family, shape(4, 2, head_dim), &[37, 1, 20], 25);
            assert_ne!(bounded.out, free.out);
        }
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    for family in families() {
        let run = || check(family, shape(4, 2, 64), &[45, 30], NO_WINDOW);
        let bits =
            |r: Results| [r.out, r.lse, r.dq, r.dk, r.dv].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert!(bits(run()) == bits(run()));
    }
}

#[test]
fn queries_read_a_cache_of_more_keys() {
    let sizes =
        [(1, 77, 32), (5, 130, 32), (1, 77, 64), (3, 41, 80), (1, 77, 96), (5, 130, 128), (1, 77, 256), (3, 41, 256)];
    for (family, (rows, keys, head_dim)) in families().into_iter().flat_map(|family| sizes.map(|size| (family, size))) {
        let shape = shape(4, 2, head_dim);
        let [q_cols, k_cols] = [shape.heads, shape.kv_heads].map(|heads| (heads * head_dim) as usize);
        let mut lab = Lab::for_family(family);
        let (q, mut k, mut v) = (lab.normal(rows * q_cols), lab.normal(keys * k_cols), lab.normal(keys * k_cols));
        // The cache beyond the newest key holds whatever was there.
        let filled = keys - 7;
        k[filled * k_cols..].fill(f64::NAN);
        v[filled * k_cols..].fill(f64::NAN);
        let key_ranges: Vec<[u32; 2]> = (0..rows).map(|i| [3, (filled - rows + 1 + i) as u32]).collect();
        let (gq, gk, gv) = (lab.matrix(rows, q_cols, &q), lab.matrix(keys, k_cols, &k), lab.matrix(keys, k_cols, &v));
        let gkeys = upload_ranges(&mut lab, &key_ranges);
        let (out, lse) = (lab.empty(rows, q_cols), lab.vector(&vec![f64::NAN; rows * 4]));
        let mut rec = lab.recorder();
        forward(
            &mut rec,
            &Operands { shape, scale: 0.2, cap: None, sinks: None, q: gq, k: gk, v: gv, key_ranges: gkeys, out, lse },
        );
        lab.run(&rec);
        let operands = twin::Operands {
            shape,
            scale: f64::from(0.2f32),
            cap: None,
            sinks: &[],
            q: &q,
            k: &k,
            v: &v,
            key_ranges: &key_ranges,
        };
        let (want_out, want_lse) = operands.forward();
        assert_close("out", &lab.read(out), &want_out, BOUND);
        assert_close("lse", &lab.read_vector(lse)[..want_lse.len()], &want_lse, BOUND);
    }
}

/// Rows of several texts, each with keys of its own.
#[test]
fn some_rows_have_the_bits_that_they_have_alone() {
    for (family, head_dim) in families().into_iter().flat_map(|family| [32, 80, 256].map(|dim| (family, dim))) {
        let shape = shape(4, 2, head_dim);
        let (rows, keys) = (5, 41);
        let [q_cols, k_cols] = [shape.heads, shape.kv_heads].map(|heads| (heads * head_dim) as usize);
        let mut lab = Lab::for_family(family);
        let (q, k, v) = (lab.normal(rows * q_cols), lab.normal(keys * k_cols), lab.normal(keys * k_cols));
        let key_ranges: Vec<[u32; 2]> = (0..rows as u32).map(|i| [i, 41 - 7 * i]).collect();
        let (gk, gv) = (lab.matrix(keys, k_cols, &k), lab.matrix(keys, k_cols, &v));
        let mut results = |first: usize, count: usize, rows: Range<u32>| {
            let gq = lab.matrix(count, q_cols, &q[first * q_cols..][..count * q_cols]);
            let ranges = upload_ranges(&mut lab, &key_ranges[first..first + count]);
            let before = lab.matrix(count, q_cols, &vec![7.0; count * q_cols]);
            let lse = lab.vector(&vec![f64::NAN; count * 4]);
            let mut rec = lab.recorder();
            let operands = Operands {
                shape,
                scale: 0.2,
                cap: None,
                sinks: None,
                q: gq,
                k: gk,
                v: gv,
                key_ranges: ranges,
                out: before,
                lse,
            };
            forward_rows(&mut rec, &operands, rows.clone());
            lab.run(&rec);
            (lab.read(before), lab.read_vector(lse)[..4 * rows.len()].to_vec())
        };
        for row in 0..rows {
            let (out, lse) = results(0, rows, row as u32..row as u32 + 1);
            let (alone, lse_alone) = results(row, 1, 0..1);
            assert_eq!(out[row * q_cols..][..q_cols], alone, "{family:?}, {head_dim}, row {row}");
            assert_eq!(lse, lse_alone, "{family:?}, {head_dim}, row {row}");
            let others = out.iter().enumerate().filter(|(at, _)| at / q_cols != row);
            assert!(others.into_iter().all(|(_, value)| *value == 7.0), "{family:?}, {head_dim}, row {row}");
        }
    }
}

#[test]
fn a_query_without_keys_gives_zeros() {
    for family in families() {
        let shape = shape(1, 1, 8);
        let mut lab = Lab::for_family(family);
        let (q, k, v) = (lab.normal(3 * 8), lab.normal(3 * 8), lab.normal(3 * 8));
        let key_ranges = [[0, 1], [2, 2], [1, 3]];
        let (gq, gk, gv) = (lab.matrix(3, 8, &q), lab.matrix(3, 8, &k), lab.matrix(3, 8, &v));
        let gkeys = upload_ranges(&mut lab, &key_ranges);
        let (out, lse) = (lab.empty(3, 8), lab.vector(&[f64::NAN; 3]));
        let mut rec = lab.recorder();
        forward(
            &mut rec,
            &Operands { shape, scale: 0.3, cap: None, sinks: None, q: gq, k: gk, v: gv, key_ranges: gkeys, out, lse },
        );
        lab.run(&rec);
        let operands = twin::Operands {
            shape,
            scale: f64::from(0.3f32),
            cap: None,
            sinks: &[],
            q: &q,
            k: &k,
            v: &v,
            key_ranges: &key_ranges,
        };
        let (want_out, want_lse) = operands.forward();
        assert_close("out", &lab.read(out), &want_out, BOUND);
        let lse = lab.read_vector(lse);
        assert!(lse[1] == -1e30, "lse {}", lse[1]);
        assert_close("lse", &[lse[0], lse[2]], &[want_lse[0], want_lse[2]], BOUND);
    }
}

#[test]
fn the_twins_gradients_are_the_slopes_of_its_forward() {
    let shape = shape(4, 2, 4);
    let mut lab = Lab::new();
    let (key_ranges, _) = ranges(&[3, 5], 3);
    let (q, k, v, dout) = (lab.normal(8 * 16), lab.normal(8 * 8), lab.normal(8 * 8), lab.normal(8 * 16));
    let no_sinks: &[f64] = &[];
    for (cap, sinks) in [(None, no_sinks), (Some(0.9), no_sinks), (None, &[0.4, -1.0, 2.0, 0.1])] {
        let at = |q: &[f64], k: &[f64], v: &[f64]| {
            let (out, _) = twin::Operands { shape, scale: 0.7, cap, sinks, q, k, v, key_ranges: &key_ranges }.forward();
            out.iter().zip(&dout).map(|(o, d)| o * d).sum::<f64>()
        };
        let operands = twin::Operands { shape, scale: 0.7, cap, sinks, q: &q, k: &k, v: &v, key_ranges: &key_ranges };
        let (dq, dk, dv) = operands.backward(&dout);
        assert_gradient(&q, &dq, |q| at(q, &k, &v));
        assert_gradient(&k, &dk, |k| at(&q, k, &v));
        assert_gradient(&v, &dv, |v| at(&q, &k, v));
    }
}
