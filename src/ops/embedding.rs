//! Embedding: `y_r = table[token_r]`, and for a trained table `dtable[t] = sum of dy_r over the rows r with token t`.
//! The table is split by rows into panels, since one binding may not cover it.

use super::elementwise;
use super::weight::{Panel, Weight};
use crate::gpu::{Kernel, Matrix, Recorder, View, params};
use crate::quant::format::Storage;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
        first_row: u32,
        panel_rows: u32,
        scale: f32,
    }
}

fn kernel(storage: Storage, hidden: u32) -> Kernel {
    storage.join(elementwise::kernel::<Params>("embedding", shader!("embedding.wgsl")), hidden)
}

fn backward_kernel(cpu: bool) -> Kernel {
    Kernel::new::<Params>("embedding_backward", shader!("embedding_backward.wgsl"))
        .constant("WG_SIZE", if cpu { 8 } else { 64 })
}

pub(super) fn kernels() -> Vec<Kernel> {
    let forward = Storage::ALL.into_iter().flat_map(|storage| [64, 63].map(|hidden| kernel(storage, hidden)));
    forward.chain([false, true].map(backward_kernel)).collect()
}

/// `out` is `[rows, hidden]`, `tokens` one u32 per row, `table` `[vocabulary, hidden]`; its rows are multiplied by `scale`.
/// A row whose token lies in no panel keeps its content.
pub fn forward(rec: &mut Recorder, tokens: View, table: &Weight, scale: f32, out: Matrix) {
    assert!(tokens.bytes >= 4 * u64::from(out.rows), "{tokens:?} for {} rows", out.rows);
    assert_eq!(table.in_features, out.cols, "embedding");
    for panel in &table.panels {
        let elements = u64::from(panel.rows) * u64::from(out.cols);
        assert!(
            table.storage.bytes(elements).0 <= panel.data.bytes && elements <= u64::from(u32::MAX),
            "{panel:?} with {} columns",
            out.cols
        );
        let (first_row, panel_rows) = (panel.first_row, panel.rows);
        let params = Params { rows: out.rows, cols: out.cols, ld: out.ld, first_row, panel_rows, scale };
        let [absmax, nested] = [panel.absmax, panel.nested].map(|view| view.unwrap_or(rec.unused));
        let groups = elementwise::workgroups(rec, out);
        let work = elementwise::elements(out);
        let views = [tokens, panel.data, absmax, nested, out.view];
        rec.dispatch("embedding", kernel(table.storage, table.in_features), &views, &params, groups, work);
    }
}

/// Adds the gradient of the table; dy is `[rows, hidden]`, to be multiplied by `scale`, `order` the indices of its rows sorted by their tokens, and
/// `gradient_of` gives the view of a panel's gradient, dense f32 `[panel rows, hidden]`.
pub fn backward(
    rec: &mut Recorder,
    tokens: View,
    order: View,
    (dy, scale): (Matrix, f32),
    panels: &[Panel],
    gradient_of: impl Fn(View) -> View,
) {
    let bytes = 4 * u64::from(dy.rows);
    assert!(tokens.bytes >= bytes && order.bytes >= bytes, "{tokens:?}, {order:?} for {} rows", dy.rows);
    for panel in panels {
        let (first_row, panel_rows) = (panel.first_row, panel.rows);
        let params = Params { rows: dy.rows, cols: dy.cols, ld: dy.ld, first_row, panel_rows, scale };
        let views = [tokens, order, dy.view, gradient_of(panel.data)];
        let groups = rec.fold(u64::from(dy.rows));
        let kernel = backward_kernel(rec.capabilities.cpu);
        rec.dispatch("embedding_backward", kernel, &views, &params, groups, elementwise::elements(dy));
    }
}

/// The formulas in plain loops; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    pub(crate) fn backward(tokens: &[u32], dy: &[f64], vocabulary: usize, hidden: usize) -> Vec<f64> {
        let mut gradient = vec![0.0; vocabulary * hidden];
        for (token, dy) in tokens.iter().zip(dy.chunks_exact(hidden)) {
            let row = &mut gradient[*token as usize * hidden..][..hidden];
            row.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
        }
        gradient
    }

    pub(crate) fn forward(tokens: &[u32], table: &[f64], hidden: usize) -> Vec<f64> {
        tokens.iter().flat_map(|t| table[*t as usize * hidden..][..hidden].to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient};
    use crate::quant::format::Float;

    #[test]
    fn every_storage_and_panel_split_equals_the_twin() {
        const VOCABULARY: usize = 230;
        for storage in Storage::ALL {
            for (rows, hidden, panels) in [(1, 1, 1), (9, 7, 4), (40, 64, 2), (31, 129, 4)] {
                let mut lab = Lab::new();
                let table = lab.normal(VOCABULARY * hidden);
                let (table, held) = lab.weight(storage, [VOCABULARY, hidden], &table, panels);
                assert_eq!(table.panels.len(), panels);
                let mut tokens: Vec<u32> = (0..rows).map(|_| lab.index(VOCABULARY) as u32).collect();
                tokens[0] = VOCABULARY as u32 - 1;
                let device_tokens = lab.words(&tokens);
                let out = lab.empty(rows, hidden);
                let mut rec = lab.recorder();
                forward(&mut rec, device_tokens, &table, 3.0, out);
                lab.run(&rec);
                let what = format!("{storage:?}, {rows} rows of {hidden}");
                let want: Vec<f64> = twin::forward(&tokens, &held, hidden).iter().map(|v| 3.0 * v).collect();
                assert_close(&what, &lab.read(out), &want, 1e-6);
            }
        }
    }

    #[test]
    fn the_gradient_of_every_panel_sums_its_tokens() {
        const VOCABULARY: usize = 23;
        for cpu in [false, true] {
            for (rows, hidden, panel_rows) in [(1, 1, 23), (9, 7, 5), (150, 64, 8), (31, 129, 22)] {
                let mut lab = Lab::for_cpu(cpu);
                let (dy, before) = (lab.normal(rows * hidden), lab.normal(VOCABULARY * hidden));
                let tokens: Vec<u32> = (0..rows).map(|_| lab.index(VOCABULARY) as u32).collect();
                let mut order: Vec<u32> = (0..rows as u32).collect();
                order.sort_by_key(|row| tokens[*row as usize]);
                let (device_tokens, device_order) = (lab.words(&tokens), lab.words(&order));
                let panels: Vec<Panel> = before
                    .chunks(panel_rows * hidden)
                    .enumerate()
                    .map(|(i, part)| Panel {
                        data: lab.vector(part),
                        first_row: (i * panel_rows) as u32,
                        rows: (part.len() / hidden) as u32,
                        absmax: None,
                        nested: None,
                    })
                    .collect();
                let device_dy = lab.matrix(rows, hidden, &dy);
                let mut rec = lab.recorder();
                // The gradients stand where the panels' values would.
                backward(&mut rec, device_tokens, device_order, (device_dy, 0.5), &panels, |data| data);
                lab.run(&rec);
                let want: Vec<f64> = twin::backward(&tokens, &dy, VOCABULARY, hidden)
                    .iter()
                    .zip(&before)
                    .map(|(sum, before)| 0.5 * sum + before)
                    .collect();
                for (panel, want) in panels.iter().zip(want.chunks(panel_rows * hidden)) {
                    assert_close("gradient", &lab.read_vector(panel.data)[..want.len()], want, 1e-6);
                }
            }
        }
    }

    #[test]
    fn the_twins_gradient_is_the_slope_of_its_forward() {
        let mut lab = Lab::new();
        let (tokens, table, dy) = ([2, 0, 2, 3], lab.normal(4 * 3), lab.normal(4 * 3));
        let f = |table: &[f64]| twin::forward(&tokens, table, 3).iter().zip(&dy).map(|(y, d)| y * d).sum();
        assert_gradient(&table, &twin::backward(&tokens, &dy, 4, 3), f);
    }

    #[test]
    fn tokens_outside_the_table_leave_their_rows_alone() {
        let mut lab = Lab::new();
        let before = lab.normal(2 * 4);
        let tokens = lab.words(&[5, u32::MAX]);
        let (mut table, _) = lab.weight(Storage::Float(Float::F32), [3, 4], &[1.0; 12], 1);
        table.panels[0].first_row = 2;
        let out = lab.matrix(2, 4, &before);
        let mut rec = lab.recorder();
        forward(&mut rec, tokens, &table, 1.0, out);
        lab.run(&rec);
        assert_close("untouched", &lab.read(out), &before, 1e-7);
    }

    #[test]
    fn workgroups_beyond_one_dimension_are_folded() {
        let mut lab = Lab::new();
        lab.capabilities.max_workgroups = 7;
        let (rows, hidden) = (50, 100);
        let table = lab.normal(3 * hidden);
        let tokens: Vec<u32> = (0..rows).map(|_| lab.index(3) as u32).collect();
        let device_tokens = lab.words(&tokens);
        let (device_table, _) = lab.weight(Storage::Float(Float::F32), [3, hidden], &table, 1);
        let out = lab.empty(rows, hidden);
        let mut rec = lab.recorder();
        forward(&mut rec, device_tokens, &device_table, 1.0, out);
        lab.run(&rec);
        assert_close("embedding", &lab.read(out), &twin::forward(&tokens, &table, hidden), 1e-7);
    }
}
