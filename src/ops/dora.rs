//! DoRA (Liu et al. 2024): a magnitude m for each output of an adapted layer, as PEFT trains it.
//!
//! With `u = W x + s B A x` and the norm `n_i` of row i of `W + s B A`, which is a constant to the gradient:
//! `y = m/n * u + b`, `dm_i = sum_r dy_ri u_ri / n_i`, and `du = m/n * dy` takes the place of dy in all that follows.
//!
//! The norm needs no full weight: `n_i^2 = |W_i|^2 + 2 s B_i . y_i` with `y = W A^T + s/2 B (A A^T)`, which is the product of a linear
//! layer with a LoRA term over the few rows of A. `|W_i|^2` is computed once.

use super::elementwise::{self, assert_alike, elements};
use super::lib_parts::REDUCE;
use super::lora_gradient::{partial_bytes, splits, sum_splits};
use super::weight::Weight;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};
use crate::quant::format::Storage;

params! {
    struct NormParams {
        rows: u32,
        cols: u32,
        first_row: u32,
    }

    struct FactorParams {
        outputs: u32,
        rank: u32,
        ld: u32,
        scale: f32,
    }

    struct ScaleParams {
        rows: u32,
        cols: u32,
        ld: u32,
        shift: f32,
    }

    struct GradientParams {
        rows: u32,
        cols: u32,
        ld4: u32,
        rows_per_split: u32,
    }
}

/// Invocations of a workgroup that sums: one vector of a software adapter, one subgroup of a GPU.
fn wg_size(cpu: bool) -> u32 {
    if cpu { 8 } else { 64 }
}

fn norm_kernel(storage: Storage, in_features: u32, cpu: bool) -> Kernel {
    let kernel = Kernel::new::<NormParams>("dora_norms", shader!("dora_norms.wgsl"))
        .part(REDUCE)
        .constant("WG_SIZE", wg_size(cpu));
    storage.join(kernel, in_features)
}

fn factor_kernel() -> Kernel {
    Kernel::new::<FactorParams>("dora_factors", shader!("dora_factors.wgsl")).constant("WG_SIZE", elementwise::WG_SIZE)
}

/// The effect of a factor for each column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Scaled,
    Added,
    InPlace { biased: bool },
}

impl Effect {
    const ALL: [Self; 4] = [Self::Scaled, Self::Added, Self::InPlace { biased: false }, Self::InPlace { biased: true }];
}

fn scale_kernel(effect: Effect) -> Kernel {
    elementwise::kernel::<ScaleParams>("column_scale", shader!("column_scale.wgsl"))
        .constant("SCALED", effect == Effect::Scaled)
        .constant("ADDED", effect == Effect::Added)
        .constant("BIASED", effect == Effect::InPlace { biased: true })
}

fn gradient_kernel(cpu: bool) -> Kernel {
    Kernel::new::<GradientParams>("dora_gradient", shader!("dora_gradient.wgsl")).constant("WG_SIZE", wg_size(cpu))
}

pub(super) fn kernels() -> Vec<Kernel> {
    let both = [false, true];
    let of = |storage| both.into_iter().flat_map(move |cpu| [64, 63].map(|cols| norm_kernel(storage, cols, cpu)));
    let norms = Storage::ALL.into_iter().flat_map(of);
    norms.chain([factor_kernel()]).chain(Effect::ALL.map(scale_kernel)).chain(both.map(gradient_kernel)).collect()
}

/// `squares_i = |W_i|^2` and `magnitudes_i = |W_i|` of the rows of `weight`, f32 `[out_features]` each.
pub fn norms(rec: &mut Recorder, weight: &Weight, squares: View, magnitudes: View) {
    assert_outputs(weight.out_features, &[squares, magnitudes]);
    for panel in &weight.panels {
        let params = NormParams { rows: panel.rows, cols: weight.in_features, first_row: panel.first_row };
        let [absmax, nested] = [panel.absmax, panel.nested].map(|view| view.unwrap_or(rec.unused));
        let views = [squares, panel.data, absmax, nested, magnitudes];
        let groups = rec.fold(u64::from(panel.rows));
        let kernel = norm_kernel(weight.storage, weight.in_features, rec.capabilities.cpu);
        let work = u64::from(panel.rows) * u64::from(weight.in_features);
        rec.dispatch("dora_norms", kernel, &views, &params, groups, work);
    }
}

fn assert_outputs(outputs: u32, views: &[View]) {
    assert!(views.iter().all(|view| view.bytes >= 4 * u64::from(outputs)), "{views:?} for {outputs} outputs");
}

/// The vectors of one layer's outputs, f32 `[out]` each.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    /// `|W_i|^2`.
    pub squares: View,
    /// `m_i / n_i`.
    pub factors: View,
    /// `1 / n_i`.
    pub inverses: View,
}

/// Computes factors and inverses from the magnitudes, from `b [out, rank]` unpadded, and from `y [rank, out]` as the module says.
pub fn factors(rec: &mut Recorder, outputs: Outputs, magnitudes: View, (b, y): (View, Matrix), scale: f32) {
    let Outputs { squares, factors, inverses } = outputs;
    let (rank, out) = (y.rows, y.cols);
    assert_outputs(out, &[squares, factors, inverses, magnitudes]);
    assert!(b.bytes >= 4 * u64::from(rank) * u64::from(out), "{b:?} of {rank} columns");
    let params = FactorParams { outputs: out, rank, ld: y.ld, scale };
    let groups = rec.fold(u64::from(out.div_ceil(elementwise::WG_SIZE)));
    let views = [squares, magnitudes, b, y.view, factors, inverses];
    rec.dispatch("dora_factors", factor_kernel(), &views, &params, groups, elements(y));
}

/// `y = b + factor (y - b)` for y `[rows, out]`, which is `u + b`.
pub fn rescale(rec: &mut Recorder, y: Matrix, factors: View, bias: Option<View>) {
    let effect = Effect::InPlace { biased: bias.is_some() };
    record(rec, effect, [rec.unused, bias.unwrap_or(rec.unused)], factors, y, 0.0);
}

/// `y += (factor - 1) u`; both are `[rows, out]`.
pub fn add_rest(rec: &mut Recorder, u: Matrix, factors: View, y: Matrix) {
    assert_alike(&[u, y]);
    record(rec, Effect::Added, [u.view, rec.unused], factors, y, -1.0);
}

/// `du = (factor + shift) dy`; both are `[rows, out]`.
pub fn scaled(rec: &mut Recorder, dy: Matrix, factors: View, shift: f32, du: Matrix) {
    assert_alike(&[dy, du]);
    record(rec, Effect::Scaled, [dy.view, rec.unused], factors, du, shift);
}

fn record(rec: &mut Recorder, effect: Effect, [x, bias]: [View; 2], factors: View, y: Matrix, shift: f32) {
    assert_outputs(y.cols, &[factors]);
    let params = ScaleParams { rows: y.rows, cols: y.cols, ld: y.ld, shift };
    let groups = elementwise::workgroups(rec, y);
    rec.dispatch("column_scale", scale_kernel(effect), &[x, factors, bias, y.view], &params, groups, elements(y));
}

/// `dm += sum of the rows of dy * u * inverse`; dy and u are `[rows, out]`.
pub fn magnitude_gradient(rec: &mut Recorder, dy: Matrix, u: Matrix, inverses: View, gradient: View) {
    assert_alike(&[dy, u]);
    assert_outputs(dy.cols, &[inverses, gradient]);
    let (rows_per_split, splits) = splits(dy.rows);
    let partials = View { bytes: partial_bytes(1, dy.cols, dy.rows), ..rec.scratch.partials };
    assert!(partials.bytes <= rec.scratch.partials.bytes, "partial sums of {} columns", dy.cols);
    let params = GradientParams { rows: dy.rows, cols: dy.cols, ld4: dy.ld / 4, rows_per_split };
    let groups = [dy.cols.div_ceil(4 * wg_size(rec.capabilities.cpu)), splits, 1];
    let kernel = gradient_kernel(rec.capabilities.cpu);
    rec.dispatch("dora_gradient", kernel, &[dy.view, u.view, inverses, partials], &params, groups, elements(dy));
    sum_splits(rec, "dora_gradient", [1, dy.cols, splits], 1.0, partials, gradient, false);
}

/// The formulas in plain loops, in f64, from the full weight.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    /// A layer: `w [out, in]`, `a [rank, in]`, `b [out, rank]`.
    pub(crate) struct Layer<'a> {
        pub w: &'a [f64],
        pub a: &'a [f64],
        pub b: &'a [f64],
        pub scale: f64,
        pub inputs: usize,
        pub rank: usize,
    }

    impl Layer<'_> {
        fn outputs(&self) -> usize {
            self.w.len() / self.inputs
        }

        /// `W + s B A`.
        pub(crate) fn merged(&self) -> Vec<f64> {
            let (inputs, rank) = (self.inputs, self.rank);
            let product = |i: usize| -> f64 {
                (0..rank).map(|k| self.b[i / inputs * rank + k] * self.a[k * inputs + i % inputs]).sum()
            };
            (0..self.w.len()).map(|i| self.w[i] + self.scale * product(i)).collect()
        }

        pub(crate) fn row_norms(&self) -> Vec<f64> {
            let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
            self.merged().chunks_exact(self.inputs).map(norm).collect()
        }

        /// `u`, the output before the magnitudes, of rows of inputs.
        pub(crate) fn direction(&self, x: &[f64]) -> Vec<f64> {
            let merged = self.merged();
            let row = |x: &[f64]| -> Vec<f64> {
                let dot = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum();
                merged.chunks_exact(self.inputs).map(dot).collect()
            };
            x.chunks_exact(self.inputs).flat_map(row).collect()
        }

        /// `m/n * u` with norms that are given, since they are constants to the gradient.
        pub(crate) fn forward(&self, x: &[f64], m: &[f64], norms: &[f64]) -> Vec<f64> {
            let out = self.outputs();
            self.direction(x).iter().enumerate().map(|(i, u)| m[i % out] / norms[i % out] * u).collect()
        }

        pub(crate) fn magnitude_gradient(&self, x: &[f64], dy: &[f64], norms: &[f64]) -> Vec<f64> {
            let (u, out) = (self.direction(x), self.outputs());
            let mut gradient = vec![0.0; out];
            for (i, (dy, u)) in dy.iter().zip(&u).enumerate() {
                gradient[i % out] += dy * u / norms[i % out];
            }
            gradient
        }
    }
}

#[cfg(test)]
mod tests {
    use super::twin::Layer;
    use super::*;
    use crate::gpu::Category;
    use crate::ops::linear::{self, LowRank};
    use crate::ops::testing::{Lab, assert_close, assert_gradient, shapes};
    use crate::quant::format::Float;

    #[test]
    fn norms_of_every_storage_equal_the_twin() {
        for cpu in [false, true] {
            for storage in Storage::ALL {
                for (rows, cols, panels) in [(1, 1, 1), (9, 7, 1), (130, 64, 2), (70, 129, 2)] {
                    let mut lab = Lab::for_cpu(cpu);
                    let values = lab.normal(rows * cols);
                    let (weight, held) = lab.weight(storage, [rows, cols], &values, panels);
                    let [squares, magnitudes] = [(); 2].map(|()| lab.vector(&vec![f64::NAN; rows]));
                    let mut rec = lab.recorder();
                    norms(&mut rec, &weight, squares, magnitudes);
                    lab.run(&rec);
                    let want: Vec<f64> = held.chunks(cols).map(|row| row.iter().map(|v| v * v).sum()).collect();
                    let roots: Vec<f64> = want.iter().map(|v| f64::sqrt(*v)).collect();
                    let what = format!("{storage:?} of {rows} x {cols}");
                    assert_close(&what, &lab.read_vector(squares)[..rows], &want, 1e-5);
                    assert_close(&what, &lab.read_vector(magnitudes)[..rows], &roots, 1e-5);
                }
            }
        }
    }

    #[test]
    fn factors_come_from_the_norms_of_the_merged_weight() {
        let scale = 0.75f32;
        for (out, inputs, rank) in [(1, 4, 1), (9, 8, 3), (70, 36, 5), (130, 64, 16)] {
            let mut lab = Lab::new();
            let [w, a, b] = [out * inputs, rank * inputs, out * rank].map(|count| lab.normal(count));
            let m = lab.normal(out);
            let layer = Layer { w: &w, a: &a, b: &b, scale: f64::from(scale), inputs, rank };
            let f32s = Storage::Float(Float::F32);
            let (weight, _) = lab.weight(f32s, [out, inputs], &w, 1);
            let (factor, _) = lab.weight(f32s, [rank, inputs], &a, 1);
            let (rows_of_a, gb, gm) = (lab.matrix(rank, inputs, &a), lab.vector(&b), lab.vector(&m));
            let [gram, y] = [(rank, rank), (rank, out)].map(|(rows, cols)| lab.empty(rows, cols));
            let [squares, factors, inverses, start] = [(); 4].map(|()| lab.vector(&vec![f64::NAN; out]));
            let mut rec = lab.recorder();
            norms(&mut rec, &weight, squares, start);
            linear::forward(&mut rec, rows_of_a, &factor, None, gram, false);
            let term = LowRank { product: gram, factor: gb, scale: scale / 2.0 };
            linear::forward(&mut rec, rows_of_a, &weight, Some(term), y, false);
            let outputs = Outputs { squares, factors, inverses };
            super::factors(&mut rec, outputs, gm, (gb, y), scale);
            lab.run(&rec);
            let norms = layer.row_norms();
            let want: Vec<f64> = norms.iter().map(|n| 1.0 / n).collect();
            // Cooperative matrices round to 16 bits.
            let bound = if lab.capabilities.cooperative.is_some() { 2e-3 } else { 1e-4 };
            assert_close("1/n", &lab.read_vector(inverses)[..out], &want, bound);
            let want: Vec<f64> = norms.iter().zip(&m).map(|(n, m)| m / n).collect();
            assert_close("m/n", &lab.read_vector(factors)[..out], &want, bound);
        }
    }

    #[test]
    fn every_effect_of_the_factors_equals_the_formula() {
        for (rows, cols) in shapes(&[(1, 1), (3, 7), (64, 64), (70, 129)]) {
            let mut lab = Lab::new();
            let [x, before] = [(); 2].map(|()| lab.normal(rows * cols));
            let [factors, bias] = [(); 2].map(|()| lab.normal(cols));
            let gx = lab.matrix(rows, cols, &x);
            let [added, rescaled, biased] = [(); 3].map(|()| lab.matrix(rows, cols, &before));
            let (scaled_x, gf, gb) = (lab.empty(rows, cols), lab.vector(&factors), lab.vector(&bias));
            let mut rec = lab.recorder();
            scaled(&mut rec, gx, gf, 0.5, scaled_x);
            add_rest(&mut rec, gx, gf, added);
            rescale(&mut rec, rescaled, gf, None);
            rescale(&mut rec, biased, gf, Some(gb));
            lab.run(&rec);
            let of = |f: &dyn Fn(usize, usize) -> f64| (0..rows * cols).map(|i| f(i, i % cols)).collect::<Vec<_>>();
            assert_close("scaled", &lab.read(scaled_x), &of(&|i, j| (factors[j] + 0.5) * x[i]), 1e-6);
            assert_close("added", &lab.read(added), &of(&|i, j| before[i] + (factors[j] - 1.0) * x[i]), 1e-6);
            assert_close("rescaled", &lab.read(rescaled), &of(&|i, j| factors[j] * before[i]), 1e-6);
            let want = of(&|i, j| bias[j] + factors[j] * (before[i] - bias[j]));
            assert_close("biased", &lab.read(biased), &want, 1e-6);
        }
    }

    #[test]
    fn the_gradient_of_magnitudes_equals_the_twin_and_accumulates() {
        for (cpu, (rows, out)) in [false, true]
            .into_iter()
            .flat_map(|cpu| [(1, 1), (3, 7), (64, 64), (2100, 33), (130, 300)].map(|s| (cpu, s)))
        {
            let mut lab = Lab::for_cpu(cpu);
            let (inputs, rank) = (5, 2);
            let [w, a, b] = [out * inputs, rank * inputs, out * rank].map(|count| lab.normal(count));
            let [x, dy, before] = [rows * inputs, rows * out, out].map(|count| lab.normal(count));
            let layer = Layer { w: &w, a: &a, b: &b, scale: 0.5, inputs, rank };
            let norms = layer.row_norms();
            let inverses: Vec<f64> = norms.iter().map(|n| 1.0 / n).collect();
            let (gdy, gu) = (lab.matrix(rows, out, &dy), lab.matrix(rows, out, &layer.direction(&x)));
            let (gi, gradient) = (lab.vector(&inverses), lab.vector(&before));
            let mut rec = lab.recorder();
            magnitude_gradient(&mut rec, gdy, gu, gi, gradient);
            lab.run(&rec);
            let sums = layer.magnitude_gradient(&x, &dy, &norms);
            let want: Vec<f64> = sums.iter().zip(&before).map(|(s, b)| s + b).collect();
            assert_close("dm", &lab.read_vector(gradient)[..out], &want, 1e-5);
        }
    }

    #[test]
    fn the_twins_gradients_are_the_slopes_of_its_forward() {
        let mut lab = Lab::new();
        let (out, inputs, rank) = (4, 3, 2);
        let [w, a, b] = [out * inputs, rank * inputs, out * rank].map(|count| lab.normal(count));
        let [x, dy, m] = [2 * inputs, 2 * out, out].map(|count| lab.normal(count));
        fn layer<'a>(w: &'a [f64], a: &'a [f64], b: &'a [f64]) -> Layer<'a> {
            Layer { w, a, b, scale: 0.7, inputs: 3, rank: 2 }
        }
        let norms = layer(&w, &a, &b).row_norms();
        let sum = |b: &[f64], m: &[f64]| -> f64 {
            layer(&w, &a, b).forward(&x, m, &norms).iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        assert_gradient(&m, &layer(&w, &a, &b).magnitude_gradient(&x, &dy, &norms), |m| sum(&b, m));
        // The gradient of B is that of plain LoRA for m/n dy.
        let du: Vec<f64> = dy.iter().enumerate().map(|(i, d)| m[i % out] / norms[i % out] * d).collect();
        let xa = |row: usize, k: usize| -> f64 { (0..inputs).map(|j| a[k * inputs + j] * x[row * inputs + j]).sum() };
        let db: Vec<f64> = (0..out * rank)
            .map(|i| 0.7 * (0..2).map(|row| du[row * out + i / rank] * xa(row, i % rank)).sum::<f64>())
            .collect();
        assert_gradient(&b, &db, |b| sum(b, &m));
    }

    #[test]
    fn a_row_of_zeros_has_a_finite_factor() {
        let mut lab = Lab::new();
        let zeros = [0.0; 4];
        let [squares, factors, inverses, m, b] = [(); 5].map(|()| lab.vector(&zeros));
        let y = lab.plan.matrix(Category::Workspace, "y", 1, 4);
        lab.fill_matrix(y, &zeros);
        let mut rec = lab.recorder();
        super::factors(&mut rec, Outputs { squares, factors, inverses }, m, (b, y), 1.0);
        lab.run(&rec);
        assert_eq!(lab.read_vector(factors)[..4], [0.0; 4]);
    }
}
