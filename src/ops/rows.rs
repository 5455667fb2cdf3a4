//! Gather of rows by index, `y_i = x_(index_i)`, and scatter, `y_(index_i) = x_i`. Each is the gradient of the other as long as no
//! index occurs twice.

use super::elementwise;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// The index of no row. It gathers zeros and scatters nothing, and as a label it has no loss.
pub const NO_ROW: u32 = u32::MAX;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        bound: u32,
    }
}

fn kernel(scatter: bool) -> Kernel {
    elementwise::kernel::<Params>("rows", shader!("rows.wgsl")).constant("SCATTER", scatter)
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false), kernel(true)]
}

fn record(rec: &mut Recorder, op: &'static str, x: Matrix, indices: View, y: Matrix, scatter: bool) {
    assert_eq!((x.cols, x.ld), (y.cols, y.ld), "rows of unlike shape: {x:?}, {y:?}");
    let (listed, indexed) = if scatter { (x, y) } else { (y, x) };
    assert!(indices.bytes >= 4 * u64::from(listed.rows), "{indices:?} for {} rows", listed.rows);
    let params = Params { rows: listed.rows, cols: listed.cols, ld: listed.ld, bound: indexed.rows };
    let groups = elementwise::workgroups(rec, listed);
    let work = elementwise::elements(listed);
    rec.dispatch(op, kernel(scatter), &[x.view, indices, y.view], &params, groups, work);
}

/// Row i of `out` becomes row `rows[i]` of `x`, or zeros where `x` has no such row. `rows` is one u32 per row of `out`.
pub fn gather_rows(rec: &mut Recorder, x: Matrix, rows: View, out: Matrix) {
    record(rec, "gather_rows", x, rows, out, false);
}

/// Row `rows[i]` of `out` becomes row i of `x`. Indices beyond `out` are skipped, and rows without an index keep their content. `rows` is one u32 per row of `x`, none twice.
pub fn scatter_rows(rec: &mut Recorder, x: Matrix, rows: View, out: Matrix) {
    record(rec, "scatter_rows", x, rows, out, true);
}

/// The formulas in plain loops.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn gather(x: &[f64], rows: &[u32], cols: usize) -> Vec<f64> {
        let row = |r: u32| x.chunks_exact(cols).nth(r as usize).map_or(vec![0.0; cols], <[f64]>::to_vec);
        rows.iter().flat_map(|r| row(*r)).collect()
    }

    pub(crate) fn scatter(x: &[f64], rows: &[u32], cols: usize, out: &mut [f64]) {
        for (row, x) in rows.iter().zip(x.chunks_exact(cols)) {
            if let Some(out) = out.chunks_exact_mut(cols).nth(*row as usize) {
                out.copy_from_slice(x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close};

    #[test]
    fn gathering_and_scattering_equal_the_twins() {
        for (all, cols) in [(1, 1), (9, 7), (40, 64), (31, 129)] {
            let mut lab = Lab::new();
            let mut rows: Vec<u32> = (0..all as u32).rev().step_by(2).collect();
            rows.push(NO_ROW);
            let (x, few, before) = (lab.normal(all * cols), lab.normal(rows.len() * cols), lab.normal(all * cols));
            let [device_x, scattered] = [&x, &before].map(|values| lab.matrix(all, cols, values));
            let (device_few, gathered) = (lab.matrix(rows.len(), cols, &few), lab.empty(rows.len(), cols));
            let device_rows = lab.words(&rows);
            let mut rec = lab.recorder();
            gather_rows(&mut rec, device_x, device_rows, gathered);
            scatter_rows(&mut rec, device_few, device_rows, scattered);
            lab.run(&rec);
            assert_close("gathered", &lab.read(gathered), &twin::gather(&x, &rows, cols), 1e-7);
            let mut want = before;
            twin::scatter(&few, &rows, cols, &mut want);
            assert_close("scattered", &lab.read(scattered), &want, 1e-7);
        }
    }
}
