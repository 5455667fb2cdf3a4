//! Rotary position embedding (Su et al. 2021) in the half-split order of the Llama checkpoints: with `h = head_dim / 2`
//! and the angle `a = position * frequency_i`, the pair `(x_i, x_(i+h))` becomes
//! `(x_i cos a - x_(i+h) sin a, x_(i+h) cos a + x_i sin a)`.
//!
//! The transpose of a rotation is the rotation by the negative angle: the gradient is rotated back in place.

use super::elementwise::{WG_SIZE, elements};
use crate::gpu::{Constant, Kernel, Matrix, Recorder, View, params};

params! {
    struct Params {
        rows: u32,
        heads: u32,
        half_dim: u32,
        ld: u32,
    }
}

/// With `quads` an invocation rotates four pairs at a time, and half of the head size must be a multiple of four.
fn kernel(quads: bool, backward: bool) -> Kernel {
    Kernel::new::<Params>("rope", include_str!("../../shaders/rope.wgsl"))
        .constant("WG_SIZE", WG_SIZE)
        .constant("QUADS", quads)
        .constant("PAIRS", if quads { 4 } else { 1 })
        .constant("Pairs", Constant::Type(if quads { "vec4<f32>" } else { "f32" }))
        .constant("Turns", Constant::Type(if quads { "vec4<f32>" } else { "vec2<f32>" }))
        .constant("BACKWARD", backward)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false, false), kernel(false, true), kernel(true, false), kernel(true, true)]
}

fn rotate(rec: &mut Recorder, x: Matrix, heads: u32, head_dim: u32, positions: View, table: View, backward: bool) {
    assert!(head_dim >= 2 && head_dim.is_multiple_of(2) && x.cols == heads * head_dim, "{heads} heads in {x:?}");
    assert!(positions.bytes >= 4 * u64::from(x.rows), "{positions:?} for {} rows", x.rows);
    assert!(table.bytes >= 4 * u64::from(head_dim), "{table:?} for a head of {head_dim}");
    let half_dim = head_dim / 2;
    let quads = half_dim.is_multiple_of(4);
    let pairs = if quads { 4 } else { 1 };
    let params = Params { rows: x.rows, heads, half_dim, ld: x.ld };
    let invocations = u64::from(x.rows) * u64::from(heads) * u64::from(half_dim / pairs);
    let groups = rec.fold(invocations.div_ceil(u64::from(WG_SIZE)));
    let views = [positions, table, x.view];
    rec.dispatch("rope", kernel(quads, backward), &views, &params, groups, 2 * elements(x));
}

/// Rotates the heads of `x`, `[rows, heads * head_dim]`, in place. `positions` is one u32 per row; `table` holds (cos,
/// sin) as `[position][head_dim / 2]` and must reach every position.
pub fn forward(rec: &mut Recorder, x: Matrix, heads: u32, head_dim: u32, positions: View, table: View) {
    rotate(rec, x, heads, head_dim, positions, table, false);
}

/// Replaces the gradient of the result of [`forward`] by that of its input.
pub fn backward(rec: &mut Recorder, dx: Matrix, heads: u32, head_dim: u32, positions: View, table: View) {
    rotate(rec, dx, heads, head_dim, positions, table, true);
}

/// The formula in plain loops, in f64; the reference of every variant.
#[cfg(test)]
pub(crate) mod twin {
    /// The angles of `forward`, or with `sign` -1 those of its gradient. `table` is (cos, sin) by position and pair.
    pub(crate) fn rotate(
        x: &[f64],
        head_dim: usize,
        row_heads: usize,
        positions: &[u32],
        table: &[f64],
        sign: f64,
    ) -> Vec<f64> {
        let half = head_dim / 2;
        let mut y = x.to_vec();
        for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
            let position = positions[head / row_heads] as usize;
            for i in 0..half {
                let turn = &table[2 * (position * half + i)..];
                let (cos, sin) = (turn[0], sign * turn[1]);
                (y[i], y[i + half]) = (y[i] * cos - y[i + half] * sin, y[i + half] * cos + y[i] * sin);
            }
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient};

    const POSITIONS: usize = 11;

    fn angles(head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let angle = |at: usize| (at / half) as f64 * 1e4f64.powf(-((at % half) as f64) / half as f64);
        (0..POSITIONS * half).flat_map(|at| [angle(at).cos(), angle(at).sin()]).map(|v| f64::from(v as f32)).collect()
    }

    #[test]
    fn both_directions_equal_the_twin() {
        for (rows, heads, head_dim) in [(1, 1, 2), (3, 3, 6), (9, 2, 8), (37, 3, 64), (20, 1, 80)] {
            let mut lab = Lab::new();
            let x = lab.normal(rows * heads * head_dim);
            let positions: Vec<u32> = (0..rows).map(|_| lab.index(POSITIONS) as u32).collect();
            let table = angles(head_dim);
            let (device_positions, device_table) = (lab.words(&positions), lab.vector(&table));
            let turned = lab.matrix(rows, heads * head_dim, &x);
            let turned_back = lab.matrix(rows, heads * head_dim, &x);
            let mut rec = lab.recorder();
            forward(&mut rec, turned, heads as u32, head_dim as u32, device_positions, device_table);
            backward(&mut rec, turned_back, heads as u32, head_dim as u32, device_positions, device_table);
            lab.run(&rec);
            let want = |sign| twin::rotate(&x, head_dim, heads, &positions, &table, sign);
            assert_close("forward", &lab.read(turned), &want(1.0), 1e-6);
            assert_close("backward", &lab.read(turned_back), &want(-1.0), 1e-6);
        }
    }

    #[test]
    fn pairs_are_half_a_head_apart() {
        let table = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        let y = twin::rotate(&[1.0, 2.0, 3.0, 4.0], 4, 1, &[1], &table, 1.0);
        assert_eq!(y, [-3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_forward() {
        let mut lab = Lab::new();
        let (x, dy, table) = (lab.normal(2 * 2 * 6), lab.normal(2 * 2 * 6), angles(6));
        let rotate = |x: &[f64], sign| twin::rotate(x, 6, 2, &[3, 7], &table, sign);
        let dx = rotate(&dy, -1.0);
        assert_gradient(&x, &dx, |x| rotate(x, 1.0).iter().zip(&dy).map(|(y, d)| y * d).sum());
    }
}
