//! Some columns of a matrix by index, no index twice: `y[:, index_i] = x[:, i]`, and its gradient, which takes the columns out and leaves
//! zeros.

use super::elementwise::WG_SIZE;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

params! {
    struct Params {
        rows: u32,
        cols: u32,
        small_ld: u32,
        large_ld: u32,
        bound: u32,
    }
}

fn kernel(take: bool) -> Kernel {
    Kernel::new::<Params>("columns", shader!("columns.wgsl")).constant("WG_SIZE", WG_SIZE).constant("TAKE", take)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false), kernel(true)]
}

fn record(rec: &mut Recorder, small: Matrix, indices: View, large: Matrix, take: bool) {
    assert_eq!(small.rows, large.rows, "columns of {small:?} and {large:?}");
    assert!(indices.bytes >= 4 * u64::from(small.cols), "{indices:?} for {} columns", small.cols);
    let (rows, cols, bound) = (small.rows, small.cols, large.cols);
    let params = Params { rows, cols, small_ld: small.ld, large_ld: large.ld, bound };
    let elements = u64::from(rows) * u64::from(cols);
    let groups = rec.fold(elements.div_ceil(u64::from(WG_SIZE)));
    rec.dispatch("columns", kernel(take), &[indices, small.view, large.view], &params, groups, elements);
}

/// Column `indices[i]` of `y` becomes column i of `x`. `indices` is one u32 per column of `x`.
pub fn put(rec: &mut Recorder, x: Matrix, indices: View, y: Matrix) {
    record(rec, x, indices, y, false);
}

/// Column i of `dx` becomes column `indices[i]` of `dy`, which becomes 0.
pub fn take(rec: &mut Recorder, dx: Matrix, indices: View, dy: Matrix) {
    record(rec, dx, indices, dy, true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close};

    #[test]
    fn columns_are_put_and_taken() {
        for (rows, few, all) in [(1, 1, 1), (3, 2, 7), (40, 5, 64), (31, 30, 129)] {
            let mut lab = Lab::new();
            // Every fourth, from the last.
            let indices: Vec<u32> = (0..few).map(|i| ((all - 1 + 4 * all - 4 * i) % all) as u32).collect();
            let (x, y) = (lab.normal(rows * few), lab.normal(rows * all));
            let (gx, gy, gi) = (lab.matrix(rows, few, &x), lab.matrix(rows, all, &y), lab.words(&indices));
            let (taken, from) = (lab.empty(rows, few), lab.matrix(rows, all, &y));
            let mut rec = lab.recorder();
            put(&mut rec, gx, gi, gy);
            take(&mut rec, taken, gi, from);
            lab.run(&rec);
            let column = |j: usize| indices.iter().position(|index| *index as usize == j);
            let of = |f: &dyn Fn(usize, Option<usize>) -> f64| -> Vec<f64> {
                (0..rows * all).map(|i| f(i, column(i % all))).collect()
            };
            let want = of(&|i, column| column.map_or(y[i], |k| x[i / all * few + k]));
            assert_close("put", &lab.read(gy), &want, 1e-7);
            assert_close("left", &lab.read(from), &of(&|i, column| column.map_or(y[i], |_| 0.0)), 1e-7);
            let want: Vec<f64> = (0..rows * few).map(|i| y[i / few * all + indices[i % few] as usize]).collect();
            assert_close("taken", &lab.read(taken), &want, 1e-7);
        }
    }
}
