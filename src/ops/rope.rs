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
        head_dim: u32,
        half_dim: u32,
        ld: u32,
        positions: u32,
    }
}

/// With `quads` an invocation rotates four pairs at a time, and half of the head size must be a multiple of four.
fn kernel(quads: bool, interleaved: bool, backward: bool) -> Kernel {
    Kernel::new::<Params>("rope", shader!("rope.wgsl"))
        .constant("WG_SIZE", WG_SIZE)
        .constant("QUADS", quads)
        .constant("PAIRS", if quads { 4 } else { 1 })
        .constant("Pairs", Constant::Type(if quads { "vec4<f32>" } else { "f32" }))
        .constant("Turns", Constant::Type(if quads { "vec4<f32>" } else { "vec2<f32>" }))
        .constant("INTERLEAVED", interleaved)
        .constant("BACKWARD", backward)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let variants = [(false, false), (true, false), (false, true)];
    variants.into_iter().flat_map(|(quads, pairs)| [false, true].map(|back| kernel(quads, pairs, back))).collect()
}

/// The heads of a matrix, and the part of each that is rotated.
#[derive(Clone, Copy, Debug)]
pub struct RotatedHeads {
    /// Heads of a row.
    pub heads: u32,
    /// Features of a head.
    pub head_dim: u32,
    /// The first features of a head, which are rotated; an even number.
    pub rotated: u32,
    /// True if neighboring features form a pair, false if features half of `rotated` apart do.
    pub interleaved: bool,
}

fn rotate(rec: &mut Recorder, x: Matrix, of: RotatedHeads, positions: View, table: View, backward: bool) {
    let RotatedHeads { heads, head_dim, rotated, interleaved } = of;
    assert!(rotated >= 2 && rotated.is_multiple_of(2) && rotated <= head_dim, "{of:?}");
    assert_eq!(x.cols, heads * head_dim, "{of:?} in {x:?}");
    assert!(positions.bytes >= 4 * u64::from(x.rows), "{positions:?} for {} rows", x.rows);
    assert!(table.bytes >= 4 * u64::from(rotated), "{table:?} for {of:?}");
    let half_dim = rotated / 2;
    let quads = half_dim.is_multiple_of(4) && head_dim.is_multiple_of(4) && !interleaved;
    let pairs = if quads { 4 } else { 1 };
    let positions_of_table = (table.bytes / (4 * u64::from(rotated))) as u32;
    let params = Params { rows: x.rows, heads, head_dim, half_dim, ld: x.ld, positions: positions_of_table };
    let invocations = u64::from(x.rows) * u64::from(heads) * u64::from(half_dim / pairs);
    let groups = rec.fold(invocations.div_ceil(u64::from(WG_SIZE)));
    let views = [positions, table, x.view];
    rec.dispatch("rope", kernel(quads, interleaved, backward), &views, &params, groups, 2 * elements(x));
}

/// Rotates the heads of `x`, `[rows, heads * head_dim]`, in place. `positions` is one u32 per row; `table` holds (cos,
/// sin) as `[position][rotated / 2]` and must reach every position.
pub fn forward(rec: &mut Recorder, x: Matrix, of: RotatedHeads, positions: View, table: View) {
    rotate(rec, x, of, positions, table, false);
}

/// Replaces the gradient of the result of [`forward`] by that of its input.
pub fn backward(rec: &mut Recorder, dx: Matrix, of: RotatedHeads, positions: View, table: View) {
    rotate(rec, dx, of, positions, table, true);
}

/// The formula in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    use super::RotatedHeads;

    /// The angles of `forward`, or with `sign` -1 those of its gradient. `table` is (cos, sin) by position and pair.
    pub(crate) fn rotate(x: &[f64], of: RotatedHeads, positions: &[u32], table: &[f64], sign: f64) -> Vec<f64> {
        let [heads, head_dim, rotated] = [of.heads, of.head_dim, of.rotated].map(|n| n as usize);
        let half = rotated / 2;
        let mut y = x.to_vec();
        for (head, y) in y.chunks_exact_mut(head_dim).enumerate() {
            let position = positions[head / heads] as usize;
            for i in 0..half {
                let turn = &table[2 * (position * half + i)..];
                let (cos, sin) = (turn[0], sign * turn[1]);
                let (a, b) = if of.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                (y[a], y[b]) = (y[a] * cos - y[b] * sin, y[b] * cos + y[a] * sin);
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

    fn whole(heads: usize, head_dim: usize) -> RotatedHeads {
        let [heads, head_dim] = [heads, head_dim].map(|n| n as u32);
        RotatedHeads { heads, head_dim, rotated: head_dim, interleaved: false }
    }

    #[test]
    fn both_directions_equal_the_twin() {
        let sizes = [(1, 1, 2), (3, 3, 6), (9, 2, 8), (37, 3, 64), (20, 1, 80)];
        let wholes = sizes.map(|(rows, heads, head_dim)| (rows, whole(heads, head_dim)));
        let parts = [(5, 2, 8, 2), (11, 3, 16, 8), (7, 2, 24, 12), (6, 1, 64, 48)]
            .map(|(rows, heads, head_dim, rotated)| (rows, RotatedHeads { rotated, ..whole(heads, head_dim) }));
        for (rows, of) in wholes.into_iter().chain(parts) {
            for of in [of, RotatedHeads { interleaved: true, ..of }] {
                let mut lab = Lab::new();
                let width = (of.heads * of.head_dim) as usize;
                let x = lab.normal(rows * width);
                let positions: Vec<u32> = (0..rows).map(|_| lab.index(POSITIONS) as u32).collect();
                let table = angles(of.rotated as usize);
                let (device_positions, device_table) = (lab.words(&positions), lab.vector(&table));
                let turned = lab.matrix(rows, width, &x);
                let turned_back = lab.matrix(rows, width, &x);
                let mut rec = lab.recorder();
                forward(&mut rec, turned, of, device_positions, device_table);
                backward(&mut rec, turned_back, of, device_positions, device_table);
                lab.run(&rec);
                let want = |sign| twin::rotate(&x, of, &positions, &table, sign);
                assert_close(&format!("forward {of:?}"), &lab.read(turned), &want(1.0), 1e-6);
                assert_close(&format!("backward {of:?}"), &lab.read(turned_back), &want(-1.0), 1e-6);
            }
        }
    }

    #[test]
    fn pairs_are_half_a_head_apart_or_neighbors() {
        let table = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        let x = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(twin::rotate(&x, whole(1, 4), &[1], &table, 1.0), [-3.0, 2.0, 1.0, 4.0]);
        let interleaved = RotatedHeads { interleaved: true, ..whole(1, 4) };
        assert_eq!(twin::rotate(&x, interleaved, &[1], &table, 1.0), [-2.0, 1.0, 3.0, 4.0]);
        let part = RotatedHeads { rotated: 2, ..whole(1, 4) };
        assert_eq!(twin::rotate(&x, part, &[1], &[1.0, 0.0, 0.0, 1.0], 1.0), [-2.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_forward() {
        let mut lab = Lab::new();
        let (x, dy, table) = (lab.normal(2 * 2 * 6), lab.normal(2 * 2 * 6), angles(4));
        let of = RotatedHeads { rotated: 4, ..whole(2, 6) };
        let rotate = |x: &[f64], sign| twin::rotate(x, of, &[3, 7], &table, sign);
        let dx = rotate(&dy, -1.0);
        assert_gradient(&x, &dx, |x| rotate(x, 1.0).iter().zip(&dy).map(|(y, d)| y * d).sum());
    }
}
