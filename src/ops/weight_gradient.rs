//! The gradient of a trained weight, `dW += dy^T x`, `[out, in]`: with dy `[rows, out]` and x `[rows, in]`, the sum over rows of their
//! outer products. GPUs take register tiles fed from workgroup memory, software adapters a variant without workgroup memory.

use super::weight::Weight;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

const TILE: u32 = 64;
/// Lanes of a workgroup, which is one vector of a software adapter.
const LANES: u32 = 8;
/// Outputs of one invocation on software adapters.
const OUTS: u32 = 16;

params! {
    struct Params {
        rows: u32,
        outs: u32,
        cols: u32,
        left_ld4: u32,
        left_col4: u32,
        right_ld4: u32,
    }
}

fn kernel(cpu: bool) -> Kernel {
    if cpu {
        Kernel::new::<Params>("weight_gradient_rows", shader!("weight_gradient_rows.wgsl")).constant("WG_SIZE", LANES)
    } else {
        Kernel::new::<Params>("weight_gradient_tiled", shader!("weight_gradient_tiled.wgsl"))
    }
}

pub(super) fn kernels() -> Vec<Kernel> {
    vec![kernel(false), kernel(true)]
}

/// Adds to the gradient of every panel of `weight`. `gradient_of` gives the view of a panel's gradient, dense f32 `[panel rows, in]`.
pub fn add(rec: &mut Recorder, dy: Matrix, x: Matrix, weight: &Weight, gradient_of: impl Fn(View) -> View) {
    assert_eq!((dy.rows, dy.cols, x.cols), (x.rows, weight.out_features, weight.in_features), "gradient of a weight");
    for panel in &weight.panels {
        let gradient = gradient_of(panel.data);
        let params = Params {
            rows: dy.rows,
            outs: panel.rows,
            cols: x.cols,
            left_ld4: dy.ld / 4,
            left_col4: panel.first_row / 4,
            right_ld4: x.ld / 4,
        };
        let groups = if rec.capabilities.cpu {
            [panel.rows.div_ceil(OUTS), x.cols.div_ceil(4 * LANES), 1]
        } else {
            [x.cols.div_ceil(TILE), panel.rows.div_ceil(TILE), 1]
        };
        let work = u64::from(dy.rows) * u64::from(panel.rows) * u64::from(x.cols);
        let kernel = kernel(rec.capabilities.cpu);
        rec.dispatch("weight_gradient", kernel, &[dy.view, x.view, gradient], &params, groups, work);
    }
}

/// The formula in plain loops, in f64.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    /// `dy^T x`, `[outs, cols]`.
    pub(crate) fn gradient(dy: &[f64], x: &[f64], outs: usize, cols: usize) -> Vec<f64> {
        let mut gradient = vec![0.0; outs * cols];
        for (dy, x) in dy.chunks_exact(outs).zip(x.chunks_exact(cols)) {
            for (at, sum) in gradient.iter_mut().enumerate() {
                *sum += dy[at / cols] * x[at % cols];
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient};
    use crate::quant::format::{Float, Storage};

    #[test]
    fn every_panel_gets_its_part_of_the_twins_sum() {
        for cpu in [false, true] {
            for (rows, outs, cols, max_binding) in [
                (1, 1, 1, 1 << 20),
                (7, 5, 3, 1 << 20),
                (66, 70, 130, 1 << 20),
                (33, 200, 37, 64 * 37 * 4),
                (130, 16, 64, 1 << 20),
            ] {
                let mut lab = Lab::for_cpu(cpu);
                let (dy, x, before) = (lab.normal(rows * outs), lab.normal(rows * cols), lab.normal(outs * cols));
                let shape = [outs as u32, cols as u32];
                let weight =
                    Weight::plan(&mut lab.plan, "weight", Storage::Float(Float::F32), shape, false, max_binding);
                let gradients: Vec<View> = weight
                    .panels
                    .iter()
                    .map(|p| lab.vector(&before[p.first_row as usize * cols..][..p.rows as usize * cols]))
                    .collect();
                let place = |data: View| {
                    gradients[weight.panels.iter().position(|p| p.data == data).expect("a panel of this weight")]
                };
                let (gdy, gx) = (lab.matrix(rows, outs, &dy), lab.matrix(rows, cols, &x));
                let mut rec = lab.recorder();
                add(&mut rec, gdy, gx, &weight, place);
                lab.run(&rec);
                let want: Vec<f64> =
                    twin::gradient(&dy, &x, outs, cols).iter().zip(&before).map(|(g, b)| g + b).collect();
                for (panel, gradient) in weight.panels.iter().zip(&gradients) {
                    let count = panel.rows as usize * cols;
                    let want = &want[panel.first_row as usize * cols..][..count];
                    assert_close("dW", &lab.read_vector(*gradient)[..count], want, 1e-5);
                }
            }
        }
    }

    #[test]
    fn the_twin_is_the_slope_of_a_linear_layer() {
        let (rows, inp, out) = (3, 4, 2);
        let mut lab = Lab::new();
        let (x, dy, w) = (lab.normal(rows * inp), lab.normal(rows * out), lab.normal(out * inp));
        let f = |w: &[f64]| -> f64 {
            (0..rows * out)
                .map(|i| dy[i] * (0..inp).map(|k| x[i / out * inp + k] * w[i % out * inp + k]).sum::<f64>())
                .sum()
        };
        assert_gradient(&w, &twin::gradient(&dy, &x, out, inp), f);
    }
}
