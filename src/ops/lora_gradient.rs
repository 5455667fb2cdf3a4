//! Gradients of the LoRA factors (Hu et al. 2021), always contracted to the rank first:
//! `dA = s (dy B)^T x  [rank, in]`, `dB = s dy^T (x A^T)  [out, rank]`.
//!
//! Both contract over rows. The rows are cut into a number of ranges that depends on their count alone, each range is summed by
//! itself, and the sums are added in order: no atomics, the same bits on every run.

use super::VariantFamily;
use crate::gpu::{Kernel, Matrix, Recorder, View, params, round_up};

const SUM_WG_SIZE: u32 = 64;
/// With more, the accumulators and the text of an invocation outgrow the fastest memory.
const MAX_QUADS: u32 = 8;
const MAX_SPLITS: u32 = 32;
const MIN_ROWS_PER_SPLIT: u32 = 64;

params! {
    struct Params {
        rows: u32,
        cols: u32,
        rank: u32,
        left_ld4: u32,
        right_ld4: u32,
        rows_per_split: u32,
    }

    struct SumParams {
        cols: u32,
        rank: u32,
        splits: u32,
        scale: f32,
    }
}

/// Lanes of a workgroup: the vector of a software adapter, whole subgroups of a GPU.
fn lanes(family: VariantFamily) -> u32 {
    if family == VariantFamily::Tiles { 64 } else { VariantFamily::LANES }
}

/// The fewest rows of a split. Software adapters have few threads, and storing sums costs them as much as loading.
fn min_rows_per_split(family: VariantFamily) -> u32 {
    if family == VariantFamily::Broadcast { 4 * MIN_ROWS_PER_SPLIT } else { MIN_ROWS_PER_SPLIT }
}

/// Quads of ranks of one invocation. Ranks that are too many for one invocation are shared evenly.
fn quads(family: VariantFamily, rank: u32) -> u32 {
    if family != VariantFamily::Broadcast {
        return 2;
    }
    let quads = rank.div_ceil(4);
    quads.div_ceil(quads.div_ceil(MAX_QUADS))
}

fn kernel(family: VariantFamily, quads: u32) -> Kernel {
    Kernel::new::<Params>("lora_gradient", shader!("lora_gradient.wgsl"))
        .constant("WG_SIZE", lanes(family))
        .constant("QUADS", quads)
        .constant("BROADCAST", family == VariantFamily::Broadcast)
}

fn sum_kernel(transposed: bool) -> Kernel {
    Kernel::new::<SumParams>("lora_gradient_sum", shader!("lora_gradient_sum.wgsl"))
        .constant("WG_SIZE", SUM_WG_SIZE)
        .constant("TRANSPOSED", transposed)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let sums = [false, true].map(sum_kernel);
    let broadcast = (1..=MAX_QUADS).map(|quads| kernel(VariantFamily::Broadcast, quads));
    [VariantFamily::Tiles, VariantFamily::Lanes]
        .map(|family| kernel(family, quads(family, 0)))
        .into_iter()
        .chain(broadcast)
        .chain(sums)
        .collect()
}

/// Bytes of the partial sums for a factor of `rank x cols` over at most `rows` rows.
pub fn partial_bytes(rank: u32, cols: u32, rows: u32) -> u64 {
    let splits = rows.div_ceil(MIN_ROWS_PER_SPLIT).min(MAX_SPLITS);
    4 * u64::from(splits) * u64::from(rank) * u64::from(round_up(cols, 4))
}

/// `gradient += scale * (dy B)^T x`; `dyb` is `[rows, rank]`, x `[rows, in]`, gradient `[rank, in]` unpadded.
pub fn lora_a(rec: &mut Recorder, dyb: Matrix, x: Matrix, scale: f32, gradient: View) {
    record(rec, dyb, x, scale, gradient, false);
}

/// `gradient += scale * dy^T (x A^T)`; `xa` is `[rows, rank]`, dy `[rows, out]`, gradient `[out, rank]` unpadded.
pub fn lora_b(rec: &mut Recorder, xa: Matrix, dy: Matrix, scale: f32, gradient: View) {
    record(rec, xa, dy, scale, gradient, true);
}

fn record(rec: &mut Recorder, left: Matrix, right: Matrix, scale: f32, gradient: View, transposed: bool) {
    assert_eq!(left.rows, right.rows, "rows of a LoRA gradient");
    let (rows, rank, cols) = (left.rows, left.cols, right.cols);
    let family = VariantFamily::of(&rec.capabilities);
    let (rows_per_split, splits) = splits_of(rows, min_rows_per_split(family));
    let partials = View { bytes: partial_bytes(rank, cols, rows), ..rec.scratch.partials };
    assert!(partials.bytes <= rec.scratch.partials.bytes, "partials of a LoRA gradient");
    let params = Params { rows, cols, rank, left_ld4: left.ld / 4, right_ld4: right.ld / 4, rows_per_split };
    let quads = quads(family, rank);
    let groups = [cols.div_ceil(4 * lanes(family)), rank.div_ceil(4 * quads), splits];
    let work = u64::from(rows) * u64::from(rank) * u64::from(cols);
    rec.dispatch("lora_gradient", kernel(family, quads), &[left.view, right.view, partials], &params, groups, work);
    sum_splits(rec, "lora_gradient", [rank, cols, splits], scale, partials, gradient, transposed);
}

/// The rows of one split, and the count of splits.
pub(super) fn splits(rows: u32) -> (u32, u32) {
    splits_of(rows, MIN_ROWS_PER_SPLIT)
}

fn splits_of(rows: u32, min: u32) -> (u32, u32) {
    let rows_per_split = rows.div_ceil(MAX_SPLITS).max(min);
    (rows_per_split, rows.div_ceil(rows_per_split))
}

/// Adds the partial sums of `splits` ranges of rows, `[rank, cols]` each, to `gradient` in their order.
pub(super) fn sum_splits(
    rec: &mut Recorder,
    op: &'static str,
    [rank, cols, splits]: [u32; 3],
    scale: f32,
    partials: View,
    gradient: View,
    transposed: bool,
) {
    let count = u64::from(rank) * u64::from(cols);
    let groups = rec.fold(count.div_ceil(u64::from(SUM_WG_SIZE)));
    let params = SumParams { cols, rank, splits, scale };
    let work = count * u64::from(splits);
    rec.dispatch(op, sum_kernel(transposed), &[partials, gradient], &params, groups, work);
}

/// The formula in plain loops.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    /// `left^T right`, `[rank, cols]`.
    pub(crate) fn contract(left: &[f64], right: &[f64], rank: usize, cols: usize) -> Vec<f64> {
        let mut gradient = vec![0.0; rank * cols];
        for (left, right) in left.chunks_exact(rank).zip(right.chunks_exact(cols)) {
            for (at, sum) in gradient.iter_mut().enumerate() {
                *sum += left[at / cols] * right[at % cols];
            }
        }
        gradient
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Lab, assert_close, assert_gradient, families};

    #[test]
    fn both_factors_equal_the_formula_and_accumulate() {
        for family in families() {
            for (rows, rank, cols) in
                [(1, 1, 1), (63, 4, 64), (130, 16, 37), (2100, 5, 130), (300, 9, 301), (520, 33, 40), (70, 48, 72)]
            {
                let mut lab = Lab::for_family(family);
                let (left, right) = (lab.normal(rows * rank), lab.normal(rows * cols));
                let before = lab.normal(rank * cols);
                let (gleft, gright) = (lab.matrix(rows, rank, &left), lab.matrix(rows, cols, &right));
                let (da, db) = (lab.vector(&before), lab.vector(&before));
                let mut rec = lab.recorder();
                lora_a(&mut rec, gleft, gright, 0.5, da);
                lora_b(&mut rec, gleft, gright, 0.5, db);
                lab.run(&rec);
                let sum = twin::contract(&left, &right, rank, cols);
                let want: Vec<f64> = before.iter().zip(&sum).map(|(b, s)| b + 0.5 * s).collect();
                assert_close("dA", &lab.read_vector(da)[..rank * cols], &want, 1e-5);
                let want: Vec<f64> =
                    before.iter().enumerate().map(|(i, b)| b + 0.5 * sum[i % rank * cols + i / rank]).collect();
                assert_close("dB", &lab.read_vector(db)[..rank * cols], &want, 1e-5);
            }
        }
    }

    #[test]
    fn the_contractions_are_the_slopes_of_the_lora_term() {
        // f = sum(dy * s (x A^T) B^T) over two rows, with 3 inputs, 2 ranks, 4 outputs.
        let (inp, rank, out, s) = (3, 2, 4, 0.7);
        let mut lab = Lab::new();
        let (x, dy, a, b) = (lab.normal(2 * inp), lab.normal(2 * out), lab.normal(rank * inp), lab.normal(out * rank));
        let xa = |a: &[f64]| -> Vec<f64> {
            (0..2 * rank).map(|i| (0..inp).map(|k| x[i / rank * inp + k] * a[i % rank * inp + k]).sum()).collect()
        };
        let dyb: Vec<f64> =
            (0..2 * rank).map(|i| (0..out).map(|n| dy[i / rank * out + n] * b[n * rank + i % rank]).sum()).collect();
        let f = |a: &[f64], b: &[f64]| -> f64 {
            let xa = xa(a);
            (0..2 * out)
                .map(|i| s * dy[i] * (0..rank).map(|j| xa[i / out * rank + j] * b[i % out * rank + j]).sum::<f64>())
                .sum()
        };
        let da: Vec<f64> = twin::contract(&dyb, &x, rank, inp).iter().map(|g| s * g).collect();
        assert_gradient(&a, &da, |a| f(a, &b));
        let flat = twin::contract(&xa(&a), &dy, rank, out);
        let db: Vec<f64> = (0..out * rank).map(|i| s * flat[i % rank * out + i / rank]).collect();
        assert_gradient(&b, &db, |b| f(&a, b));
    }
}
