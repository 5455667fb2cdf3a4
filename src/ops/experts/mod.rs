//! Mixture of experts (Shazeer et al. 2017, in the form of Mixtral and Qwen3): a router gives each row scores of the experts,
//! `p = softmax(x R^T)`; the row goes through the `top` experts of the largest, and `y = sum of w_e f_e(x)` over these, where w is p, or p
//! divided by its sum over the chosen experts. In the form of DeepSeek-V3 and LFM2, `p = sigmoid(x R^T)`, a bias of each expert is added to
//! p for the choice alone, w may be divided by the sum and 1e-6, and is multiplied by a constant `s`.
//!
//! A pair is a row and one of its experts, number `row * top + choice`. Pairs are sorted by expert into slots. An expert's slots begin
//! at a tile of their own, so that all slots of a tile are multiplied by one weight; slots that are left free have no pair. Sorting keeps
//! the order of pairs, and each row is computed by itself, so that its bits do not depend on the other rows.
//!
//! Backward with `D` the gradient of y: the share of a pair is `c_e = D f_e(x)`. Where the weights are divided by their sum, the router's
//! logits have the gradient `w_e (c_e - sum of w c / s)` on the chosen experts, else `p_e (c_e - sum of p c)` with `c_e = 0` on the others.
//! Where f_e adds a bias `b_e` to its result, c_e has `D b_e` besides.
//! Sigmoids have it times `1 - p_e` on the chosen experts, without the sum where w is not divided, and 0 on the others.

mod choice;
mod product;
#[cfg(test)]
mod tests;
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin;

pub use choice::{Choice, Scores, Tables};
use choice::{NONE, PARTS, TILE};
pub use product::{Source, forward, input_gradient};

use super::elementwise;
use super::glu::Activation;
use super::lib_parts::{MASK_TAIL, REDUCE};
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

/// The most experts of a layer.
pub const MAX_EXPERTS: usize = 1024;

params! {
    struct RouteParams {
        rows: u32,
        experts: u32,
        ld: u32,
        top: u32,
        scale: f32,
    }

    struct SortParams {
        experts: u32,
        pairs: u32,
        part: u32,
    }

    struct OffsetParams {
        experts: u32,
        tiles: u32,
    }

    struct CombineParams {
        rows: u32,
        cols: u32,
        x_ld4: u32,
        y_ld4: u32,
        y_col4: u32,
        top: u32,
    }

    struct GluParams {
        slots: u32,
        cols: u32,
        ld4: u32,
    }

    struct BiasParams {
        pairs: u32,
        cols: u32,
        ld: u32,
        top: u32,
    }
}

fn router(kernel: Kernel, scores: Scores, normalized: bool) -> Kernel {
    kernel
        .constant("WG_SIZE", elementwise::WG_SIZE)
        .constant("SIGMOID", scores == Scores::Sigmoid)
        .constant("NORMALIZED", normalized)
}

fn route_kernel(scores: Scores, normalized: bool, biased: bool) -> Kernel {
    let kernel = Kernel::new::<RouteParams>("expert_route", shader!("expert_route.wgsl"));
    router(kernel, scores, normalized).constant("BIASED", biased)
}

fn route_backward_kernel(scores: Scores, normalized: bool) -> Kernel {
    let kernel = Kernel::new::<RouteParams>("expert_route_backward", shader!("expert_route_backward.wgsl"));
    router(kernel, scores, normalized)
}

fn sorting(kernel: Kernel) -> Kernel {
    kernel.constant("WG_SIZE", elementwise::WG_SIZE).constant("PARTS", PARTS)
}

fn count_kernel() -> Kernel {
    sorting(Kernel::new::<SortParams>("expert_count", shader!("expert_count.wgsl")))
}

fn offsets_kernel(tile: u32) -> Kernel {
    sorting(Kernel::new::<OffsetParams>("expert_offsets", shader!("expert_offsets.wgsl")))
        .constant("MAX_EXPERTS", MAX_EXPERTS as u32)
        .constant("ROWS", tile)
        .constant("NONE", NONE)
}

fn place_kernel() -> Kernel {
    sorting(Kernel::new::<SortParams>("expert_place", shader!("expert_place.wgsl")))
}

fn combine_kernel(weighted: bool) -> Kernel {
    elementwise::kernel::<CombineParams>("expert_combine", shader!("expert_combine.wgsl"))
        .constant("WEIGHTED", weighted)
}

fn glu_kernel(cpu: bool, activation: Activation, tile: u32) -> Kernel {
    let kernel = Kernel::new::<GluParams>("expert_glu_backward", shader!("expert_glu_backward.wgsl"));
    activation
        .join(kernel.part(MASK_TAIL).part(REDUCE))
        .constant("WG_SIZE", if cpu { 8 } else { elementwise::WG_SIZE })
        .constant("ROWS", tile)
        .constant("NONE", NONE)
}

fn bias_kernel(cpu: bool) -> Kernel {
    Kernel::new::<BiasParams>("expert_bias_shares", shader!("expert_bias_shares.wgsl"))
        .part(REDUCE)
        .constant("WG_SIZE", if cpu { 8 } else { elementwise::WG_SIZE })
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut all = product::kernels();
    all.extend([count_kernel(), place_kernel(), bias_kernel(false), bias_kernel(true)]);
    for flag in [false, true] {
        all.push(combine_kernel(flag));
        for scores in [Scores::Softmax, Scores::Sigmoid] {
            all.push(route_backward_kernel(scores, flag));
            all.extend([false, true].map(|biased| route_kernel(scores, flag, biased)));
        }
    }
    for tile in [1, TILE] {
        all.push(offsets_kernel(tile));
        for cpu in [false, true] {
            all.extend(Activation::ALL.map(|activation| glu_kernel(cpu, activation, tile)));
        }
    }
    all
}

/// Chooses the experts of each row: the router's logits `[rows, experts]` become scores, and `chosen` and `weights` are filled. `bias`,
/// f32 `[experts]`, is added to the scores for the choice alone. Among equals the expert of the smaller number is chosen.
pub fn route(rec: &mut Recorder, logits: Matrix, choice: Choice, bias: Option<View>, tables: &Tables) {
    let params = route_params(logits, choice);
    let groups = rec.fold(u64::from(logits.rows.div_ceil(elementwise::WG_SIZE)));
    let views = [logits.view, tables.chosen, tables.weights, bias.unwrap_or(rec.unused)];
    let work = u64::from(choice.top) * elementwise::elements(logits);
    let kernel = route_kernel(choice.scores, choice.normalized, bias.is_some());
    rec.dispatch("expert_route", kernel, &views, &params, groups, work);
}

/// The gradient of the router's logits, in the place of the scores `[rows, experts]`, from the shares of the pairs, which are overwritten.
pub fn route_backward(rec: &mut Recorder, probabilities: Matrix, choice: Choice, tables: &Tables, shares: View) {
    let params = route_params(probabilities, choice);
    let groups = rec.fold(u64::from(probabilities.rows.div_ceil(elementwise::WG_SIZE)));
    let views = [probabilities.view, tables.chosen, tables.weights, shares];
    let work = elementwise::elements(probabilities);
    let kernel = route_backward_kernel(choice.scores, choice.normalized);
    rec.dispatch("expert_route_backward", kernel, &views, &params, groups, work);
}

fn route_params(matrix: Matrix, choice: Choice) -> RouteParams {
    assert_eq!(matrix.cols, choice.experts, "columns of the router");
    RouteParams { rows: matrix.rows, experts: choice.experts, ld: matrix.ld, top: choice.top, scale: choice.scale }
}

/// Sorts the pairs of `rows` rows by expert: fills the slots and tiles of the tables. `counts` is scratch of [`Choice::count_bytes`].
pub fn sort(rec: &mut Recorder, rows: u32, choice: Choice, tables: &Tables, counts: View) {
    let Choice { experts, .. } = choice;
    let pairs = choice.pairs(rows);
    let params = SortParams { experts, pairs, part: pairs.div_ceil(PARTS) };
    let groups = rec.fold(u64::from((experts * PARTS).div_ceil(elementwise::WG_SIZE)));
    let work = u64::from(experts) * u64::from(pairs);
    rec.dispatch("expert_sort", count_kernel(), &[tables.chosen, counts], &params, groups, work);
    let offsets = OffsetParams { experts, tiles: choice.tiles(rows) };
    let views = [counts, tables.tiles, tables.pairs];
    let kernel = offsets_kernel(choice.tile(rows));
    rec.dispatch("expert_sort", kernel, &views, &offsets, [1, 1, 1], u64::from(experts * PARTS));
    let views = [tables.chosen, counts, tables.slots, tables.pairs];
    rec.dispatch("expert_sort", place_kernel(), &views, &params, groups, work);
}

/// Adds up the outputs `[slots, cols]` of each row's experts, each times its weight if `weighted`, into the columns of y `[rows, more]`
/// from `first_col` on, a multiple of 4.
pub fn combine(
    rec: &mut Recorder,
    outputs: Matrix,
    choice: Choice,
    tables: &Tables,
    weighted: bool,
    (y, first_col): (Matrix, u32),
) {
    assert!(first_col.is_multiple_of(4) && first_col + outputs.cols <= y.cols, "experts' outputs and their sum");
    let (cols, x_ld4, y_ld4) = (outputs.cols, outputs.ld / 4, y.ld / 4);
    let params = CombineParams { rows: y.rows, cols, x_ld4, y_ld4, y_col4: first_col / 4, top: choice.top };
    let quads = u64::from(y.rows) * u64::from(cols.div_ceil(4));
    let groups = rec.fold(quads.div_ceil(u64::from(elementwise::WG_SIZE)));
    let views = [outputs.view, tables.slots, tables.weights, y.view];
    let work = u64::from(choice.top) * elementwise::elements(y);
    rec.dispatch("expert_combine", combine_kernel(weighted), &views, &params, groups, work);
}

/// From gate and up of every slot, `[slots, inner]`, and the gradient of their gated product but for the expert's weight: gate and up
/// become their gradients, and `shares` gets that of each pair's weight, f32.
pub fn glu_backward(
    rec: &mut Recorder,
    activation: Activation,
    [gate, up, dact]: [Matrix; 3],
    (choice, rows): (Choice, u32),
    tables: &Tables,
    shares: View,
) {
    elementwise::assert_alike(&[gate, up, dact]);
    let params = GluParams { slots: gate.rows, cols: gate.cols, ld4: gate.ld / 4 };
    let groups = rec.fold(u64::from(gate.rows));
    let views = [gate.view, up.view, dact.view, tables.tiles, tables.pairs, tables.weights, shares];
    let kernel = glu_kernel(rec.capabilities.cpu, activation, choice.tile(rows));
    rec.dispatch("expert_glu_backward", kernel, &views, &params, groups, 10 * elementwise::elements(gate));
}

/// Adds the products of the biases of the experts' outputs, f32 `[experts][cols]`, with the gradient of their sum, `[rows, cols]`, to the
/// shares of the pairs.
pub fn bias_shares(rec: &mut Recorder, dy: Matrix, biases: View, choice: Choice, tables: &Tables, shares: View) {
    let params = BiasParams { pairs: choice.pairs(dy.rows), cols: dy.cols, ld: dy.ld, top: choice.top };
    let groups = rec.fold(u64::from(params.pairs));
    let views = [dy.view, tables.chosen, biases, shares];
    let work = u64::from(choice.top) * elementwise::elements(dy);
    rec.dispatch("expert_bias_shares", bias_kernel(rec.capabilities.cpu), &views, &params, groups, work);
}
