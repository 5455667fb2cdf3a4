use super::twin::{Sizes, Values, gradients, operands, values};
use super::*;
use crate::ops::testing::{Lab, assert_close, assert_gradient};

/// The error of f32 over a sequence: every row rounds the state, whose decay bounds how far that reaches, and every sum over the features of
/// a head. A wrong term is off by far more.
const BOUND: f64 = 2e-5;
/// The gradients of the decays are sums of terms of both signs over the rest of the interval.
const DECAY_BOUND: f64 = 1e-4;

fn shape(key_heads: u32, value_heads: u32, key_dim: u32, value_dim: u32) -> Shape {
    Shape { key_heads, value_heads, key_dim, value_dim }
}

fn added(before: &[f64], sums: &[f64]) -> Vec<f64> {
    before.iter().zip(sums).map(|(before, sum)| before + sum).collect()
}

/// The bits of the gradients of drawn q, k, v, decays and write strengths.
fn gradient_bits(shape: Shape, positions: &[u32], at_a_time: u32) -> Vec<u32> {
    let mut lab = Lab::for_cpu(false);
    let rows = positions.len();
    let of = values(&mut lab, shape, rows);
    let dout = lab.normal(rows * shape.out_cols() as usize);
    let operands = operands(&mut lab, shape, positions, &of);
    let gradients = gradients(&mut lab, shape, &dout, None);
    let mut rec = lab.recorder();
    backward_of_heads(&mut rec, &operands, &gradients, at_a_time);
    lab.run(&rec);
    [gradients.dqkv, gradients.da, gradients.db].iter().flat_map(|m| lab.read(*m)).map(f32::to_bits).collect()
}

#[test]
fn heads_give_the_same_bits_however_many_at_a_time() {
    let shape = shape(1, 5, 20, 36);
    let positions: Vec<u32> = (0..70).map(|row| row % 45).collect();
    let together = gradient_bits(shape, &positions, 5);
    for at_a_time in [1, 2] {
        assert!(gradient_bits(shape, &positions, at_a_time) == together, "{at_a_time} at a time");
    }
}

fn compare(cpu: bool, shape: Shape, rows: usize, longest: usize) {
    let mut lab = Lab::for_cpu(cpu);
    let (heads, width) = (shape.value_heads as usize, shape.out_cols() as usize);
    let positions = lab.positions(rows, longest);
    let of = values(&mut lab, shape, rows);
    let (dout, before) = (lab.normal(rows * width), lab.normal(heads));
    let operands = operands(&mut lab, shape, &positions, &of);
    let out = lab.empty(rows, width);
    let of_vectors = [(); 2].map(|()| lab.vector(&before));
    let gradients = gradients(&mut lab, shape, &dout, Some(of_vectors));
    let mut rec = lab.recorder();
    forward(&mut rec, &operands, None, out);
    backward(&mut rec, &operands, &gradients);
    lab.run(&rec);
    let sizes = Sizes { shape, positions: &positions };
    let what = |name: &str| format!("{name} of {rows} rows, sequences up to {longest}, {shape:?}, cpu {cpu}");
    assert_close(&what("result"), &lab.read(out), &twin::forward(sizes, &of), BOUND);
    let want = twin::backward(sizes, &of, &dout);
    assert_close(&what("dqkv"), &lab.read(gradients.dqkv), &want.qkv, BOUND);
    assert_close(&what("db"), &lab.read(gradients.db), &want.b, BOUND);
    assert_close(&what("da"), &lab.read(gradients.da), &want.a, DECAY_BOUND);
    for (name, view, sums) in [("a_log", of_vectors[0], &want.a_log), ("dt_bias", of_vectors[1], &want.dt_bias)] {
        // Terms of both signs may add up to almost nothing, so their sizes belong to the scale.
        let got = [lab.read(gradients.da), lab.read_vector(view)[..heads].to_vec()].concat();
        assert_close(&what(name), &got, &[want.a.clone(), added(&before, sums)].concat(), DECAY_BOUND);
    }
}

#[test]
fn both_directions_equal_the_twin() {
    for (rows, longest, shape) in [
        (1, 1, shape(1, 1, 4, 4)),
        (3, 2, shape(1, 2, 8, 12)),
        (9, 9, shape(3, 3, 20, 4)),
        (70, 15, shape(2, 6, 36, 20)),
        (64, 64, shape(1, 1, 16, 64)),
        (65, 65, shape(2, 2, 64, 16)),
        (203, 150, shape(1, 2, 44, 52)),
        (150, 400, shape(1, 1, 128, 128)),
        (20, 12, shape(1, 1, 256, 132)),
        (20, 12, shape(1, 1, 132, 256)),
    ] {
        for cpu in [false, true] {
            compare(cpu, shape, rows, longest);
        }
    }
}

/// One text in passes of several lengths, each with the state that the one before left, and then another one in place of it.
#[test]
fn passes_continue_from_the_state() {
    for cpu in [false, true] {
        for shape in [shape(1, 2, 12, 20), shape(2, 2, 64, 48)] {
            let mut lab = Lab::for_cpu(cpu);
            let (lengths, width) = ([4, 1, 1, 11, 1, 3, 1], shape.out_cols() as usize);
            let rows: usize = lengths.iter().sum();
            // The last two passes are of the other text.
            let positions: Vec<u32> = (0..rows as u32).map(|row| row % (rows as u32 - 4)).collect();
            let of = values(&mut lab, shape, rows);
            // Whatever the first text finds, its first row is at the beginning.
            let state = lab.vector(&vec![f64::NAN; (shape.state_bytes() / 4) as usize]);
            let mut rec = lab.recorder();
            let (mut first, mut outs) = (0, Vec::new());
            for length in lengths {
                let own = |values: &[f64]| {
                    let cols = values.len() / rows;
                    values[first * cols..(first + length) * cols].to_vec()
                };
                let part = Values { qkv: own(&of.qkv), a: own(&of.a), b: own(&of.b), ..of.clone() };
                let operands = operands(&mut lab, shape, &positions[first..first + length], &part);
                let out = lab.empty(length, width);
                forward(&mut rec, &operands, Some(state), out);
                outs.push(out);
                first += length;
            }
            lab.run(&rec);
            let got: Vec<f32> = outs.into_iter().flat_map(|out| lab.read(out)).collect();
            let want = twin::forward(Sizes { shape, positions: &positions }, &of);
            assert_close(&format!("{shape:?}, cpu {cpu}"), &got, &want, BOUND);
        }
    }
}

/// Gates at the ends of what f32 can hold, and a row of zeros, whose length is that of the constant under the root.
#[test]
fn extreme_gates_stay_finite() {
    for cpu in [false, true] {
        let mut lab = Lab::for_cpu(cpu);
        let (shape, rows) = (shape(1, 1, 8, 8), 12);
        let mut of = values(&mut lab, shape, rows);
        of.a = [0.0, 200.0, -200.0, 1e30, -1e30, 0.0].repeat(2);
        of.b = [0.0, -200.0, 200.0, -1e30, 1e30, 0.0].repeat(2);
        of.qkv[2 * 24..3 * 24].fill(0.0);
        let dout = lab.normal(rows * 8);
        let positions: Vec<u32> = (0..rows as u32).collect();
        let operands = operands(&mut lab, shape, &positions, &of);
        let out = lab.empty(rows, 8);
        let gradients = gradients(&mut lab, shape, &dout, None);
        let mut rec = lab.recorder();
        forward(&mut rec, &operands, None, out);
        backward(&mut rec, &operands, &gradients);
        lab.run(&rec);
        for matrix in [out, gradients.dqkv, gradients.da, gradients.db] {
            assert!(lab.read(matrix).iter().all(|value| value.is_finite()), "{matrix:?}, cpu {cpu}");
        }
    }
}

#[test]
fn long_passes_keep_fewer_states() {
    let shape = shape(16, 16, 128, 128);
    assert_eq!(shape.state_bytes(), 1 << 20);
    for (rows, interval, chunks) in [(1, 64, 1), (65, 64, 2), (1024, 64, 16), (1025, 128, 9), (8192, 512, 16)] {
        assert_eq!(shape.intervals(rows), (interval, chunks), "{rows} rows");
    }
    // A state that is larger than all of them may be is still kept once.
    let wide = Shape { value_heads: 128, value_dim: 256, key_dim: 256, ..shape };
    assert_eq!(wide.intervals(100).1, 1);
    // In chunks there are as many states as ever, of fewer heads at a time.
    for (rows, heads) in [(1, 16), (512, 16), (513, 15), (1024, 8), (8192, 1), (100_000, 1)] {
        assert_eq!(shape.chunked_heads(rows), heads, "{rows} rows");
    }
}

#[test]
fn the_twins_gradients_are_the_slopes_of_its_forward() {
    let mut lab = Lab::new();
    let (shape, positions) = (shape(1, 2, 4, 4), [0, 1, 2, 3, 0, 0, 1]);
    let sizes = Sizes { shape, positions: &positions };
    let of = values(&mut lab, shape, 7);
    let dout = lab.normal(7 * 8);
    let to = twin::backward(sizes, &of, &dout);
    let objective = |values: Values| twin::forward(sizes, &values).iter().zip(&dout).map(|(y, d)| y * d).sum();
    assert_gradient(&of.qkv, &to.qkv, |qkv| objective(Values { qkv: qkv.to_vec(), ..of.clone() }));
    assert_gradient(&of.a, &to.a, |a| objective(Values { a: a.to_vec(), ..of.clone() }));
    assert_gradient(&of.b, &to.b, |b| objective(Values { b: b.to_vec(), ..of.clone() }));
    assert_gradient(&of.a_log, &to.a_log, |a_log| objective(Values { a_log: a_log.to_vec(), ..of.clone() }));
    assert_gradient(&of.dt_bias, &to.dt_bias, |dt_bias| objective(Values { dt_bias: dt_bias.to_vec(), ..of.clone() }));
}
