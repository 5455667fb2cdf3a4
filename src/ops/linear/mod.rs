//! Linear layers over frozen weights, with the LoRA term (Hu et al. 2021) inside the same contraction:
//!
//! forward `y = x W^T + s (x A^T) B^T + b`, input gradient `dx = dy W + s (dy B) A`.
//!
//! Several layers may read the same input, as q, k and v do, or gate and up. GPUs compute the gradient of such an input in one
//! contraction over all of these layers.
//!
//! `W [out, in]` is read packed in both directions, by one of five kinds of kernels:
//!
//! - `tiled`, on GPUs: register tiles fed from workgroup memory. The weight is decoded on the way in. Of several sizes of tiles the
//!   one is taken that was measured to be the fastest ([`Variant`]).
//! - `cooperative`, on GPUs with cooperative matrices, save where a product is small.
//! - `broadcast`, on software adapters whose lanes exchange values.
//! - `rows`, on other software adapters: the weight is decoded to a bounded f32 panel, LoRA's rows are appended to it, and it is
//!   multiplied without workgroup memory.
//! - `few_rows`, on every adapter for the few rows of generation.

mod broadcast;
mod contraction;
mod cooperative;
#[cfg(test)]
mod cooperative_tests;
mod few_rows;
mod rows;
#[cfg(test)]
mod tests;
mod tiled;

pub(crate) use contraction::Direction;
use contraction::{Contraction, GroupedContraction, op_name};
pub use contraction::{GradientTerm, LowRank};
pub use few_rows::MAX_ROWS as FEW_ROWS;
use tiled::Tile;

use super::weight::Weight;
use crate::gpu::{Capabilities, Category, Command, Kernel, Matrix, MemoryPlan, ProblemSize, Recorder, round_up};
use crate::ops::VariantFamily;
use crate::quant::format::{Code4, Storage};

/// A kernel that a GPU can take for a contraction. All variants for one problem take as many dispatches a panel, so that a plan's
/// bytes for parameters do not depend on the choice, and give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Register tiles in f32.
    Tiled(Tile),
    /// Cooperative matrices.
    Cooperative(cooperative::Variant),
}

impl Variant {
    /// All variants for one problem. The first one is taken where none was measured. A new variant joins this list: trials and tests
    /// walk it. Software adapters have nothing to choose from. A device with cooperative matrices always takes them, whether or not
    /// a trial would find them faster: they round their factors, and a run's bits must not depend on a measurement.
    pub fn all(capabilities: &Capabilities, problem: &ProblemSize) -> Vec<Self> {
        if cooperative::applies(capabilities, problem) {
            return cooperative::Variant::all(capabilities).map(Self::Cooperative).collect();
        }
        match VariantFamily::of(capabilities) {
            VariantFamily::Tiles => Tile::fitting(problem.rows, problem.cols).into_iter().map(Self::Tiled).collect(),
            VariantFamily::Lanes | VariantFamily::Broadcast => Vec::new(),
        }
    }

    /// The name in the autotune table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiled(tile) => tile.name,
            Self::Cooperative(variant) => variant.tile.name,
        }
    }

    fn kernel(self, direction: Direction, storage: Storage, in_features: u32) -> Kernel {
        match self {
            Self::Tiled(tile) => tile.kernel(direction, storage, in_features, 1),
            Self::Cooperative(variant) => variant.kernel(direction, storage, in_features, 1),
        }
    }

    fn record(self, rec: &mut Recorder, grouped: GroupedContraction) {
        match self {
            Self::Tiled(tile) => tiled::record(rec, tile, &grouped),
            Self::Cooperative(variant) => cooperative::record(rec, variant, &grouped),
        }
    }
}

/// The most dispatches that a variant takes for a panel.
pub(crate) const DISPATCHES: u64 = 3;

/// The operands of a trial: those of a problem's shape, without a LoRA term.
pub(crate) struct Operands {
    direction: Direction,
    pub weight: Weight,
    pub x: Matrix,
    y: Matrix,
}

impl Operands {
    /// Plans the operands. None where the problem is no contraction of this module.
    pub(crate) fn plan(plan: &mut MemoryPlan, problem: &ProblemSize) -> Option<Self> {
        let (direction, storage) = operation(problem)?;
        let shape = match direction {
            Direction::Forward => [problem.cols, problem.depth],
            Direction::InputGradient => [problem.depth, problem.cols],
        };
        let weight = Weight::plan(plan, "trial weight", storage, shape, false, u64::MAX);
        let x = plan.matrix(Category::Workspace, "trial x", problem.rows, problem.depth);
        let y = plan.matrix(Category::Workspace, "trial y", problem.rows, problem.cols);
        Some(Self { direction, weight, x, y })
    }

    /// The query for the scratch that the trial needs.
    pub(crate) fn workspace_query(&self) -> WorkspaceQuery {
        let Weight { out_features, in_features, .. } = self.weight;
        WorkspaceQuery { out_features, in_features, rank: 0, rows: self.x.rows }
    }

    pub(crate) fn record(&self, rec: &mut Recorder, variant: Variant) {
        for contraction in Contraction::of_panels(self.direction, self.x, &self.weight, None, self.y, false) {
            variant.record(rec, GroupedContraction::one(contraction));
        }
    }
}

/// The direction and the storage that a problem names.
fn operation(problem: &ProblemSize) -> Option<(Direction, Storage)> {
    let storage = problem.storage.parse().ok()?;
    let named = |direction: &Direction| op_name(*direction, storage) == problem.op;
    Some(([Direction::Forward, Direction::InputGradient].into_iter().find(named)?, storage))
}

/// A checksum of the texts of all variants for a problem: measurements of other texts do not hold for these.
pub(crate) fn version(capabilities: &Capabilities, problem: &ProblemSize) -> u32 {
    let Some((direction, storage)) = operation(problem) else { return 0 };
    let in_features = if direction == Direction::Forward { problem.depth } else { problem.cols };
    Variant::all(capabilities, problem).iter().fold(0, |sum, variant| {
        let text = variant.kernel(direction, storage, in_features).wgsl();
        crc32c::crc32c_append(crc32c::crc32c_append(sum, variant.name().as_bytes()), text.as_bytes())
    })
}

/// `y = x W^T + LoRA term + bias`, added to `y` when `accumulate`. x is `[rows, in]`, y `[rows, out]`.
pub fn forward(rec: &mut Recorder, x: Matrix, weight: &Weight, low_rank: Option<LowRank>, y: Matrix, accumulate: bool) {
    assert_eq!((x.rows, x.cols, y.cols), (y.rows, weight.in_features, weight.out_features), "linear forward");
    contract(rec, Direction::Forward, x, weight, low_rank, y, accumulate);
}

/// `dx = dy W + LoRA term`, added to `dx` when `accumulate`. dy is `[rows, out]`, dx `[rows, in]`.
pub fn input_gradient(
    rec: &mut Recorder,
    dy: Matrix,
    weight: &Weight,
    low_rank: Option<LowRank>,
    dx: Matrix,
    accumulate: bool,
) {
    assert_eq!(
        (dy.rows, dy.cols, dx.cols),
        (dx.rows, weight.out_features, weight.in_features),
        "linear input gradient"
    );
    contract(rec, Direction::InputGradient, dy, weight, low_rank, dx, accumulate);
}

/// `dx = sum over the terms of dy W + LoRA term`, in one contraction where the device has a variant for that and each kind of operand
/// lies within one binding, else term by term. dx is `[rows, in]`.
pub fn sum_of_input_gradients(rec: &mut Recorder, terms: &[GradientTerm], dx: Matrix) {
    let capabilities = &rec.capabilities;
    let applies = |grouped: &GroupedContraction| {
        VariantFamily::of(capabilities) == VariantFamily::Tiles
            || cooperative::applies(capabilities, &grouped.problem())
    };
    match GroupedContraction::of_gradients(capabilities.max_binding_bytes, terms, dx).filter(applies) {
        Some(grouped) => choose(rec, grouped.problem()).record(rec, grouped),
        None => {
            for (i, GradientTerm { dy, weight, low_rank }) in terms.iter().enumerate() {
                input_gradient(rec, *dy, weight, *low_rank, dx, i > 0);
            }
        }
    }
}

fn contract(
    rec: &mut Recorder,
    direction: Direction,
    x: Matrix,
    weight: &Weight,
    low_rank: Option<LowRank>,
    y: Matrix,
    accumulate: bool,
) {
    if let Some(term) = &low_rank {
        assert_eq!(term.product.rows, x.rows, "rows of the LoRA term");
    }
    for contraction in Contraction::of_panels(direction, x, weight, low_rank, y, accumulate) {
        let problem = contraction.problem();
        if direction == Direction::Forward && x.rows <= FEW_ROWS {
            few_rows::record(rec, contraction);
        } else if !rec.capabilities.cpu || cooperative::applies(&rec.capabilities, &problem) {
            choose(rec, problem).record(rec, GroupedContraction::one(contraction));
        } else if broadcast::applies(&rec.capabilities, weight.in_features) {
            broadcast::record(rec, contraction);
        } else {
            rows::record(rec, contraction);
        }
    }
}

/// True for a list that multiplies by cooperative matrices.
pub(crate) fn by_matrices(rec: &Recorder) -> bool {
    let is = |command: &Command| matches!(command, Command::Dispatch(d) if d.kernel.name == cooperative::NAME);
    rec.commands.iter().any(is)
}

/// The variant that was measured to be the fastest, else the first.
fn choose(rec: &mut Recorder, problem: ProblemSize) -> Variant {
    let variants = Variant::all(&rec.capabilities, &problem);
    let measured = rec.choose(problem);
    *variants.iter().find(|variant| Some(variant.name()) == measured).unwrap_or(&variants[0])
}

/// The shape of a contraction, from which the bytes of its scratch follow.
#[derive(Clone, Copy, Debug)]
pub struct WorkspaceQuery {
    /// Rows of the weight's largest panel.
    pub out_features: u32,
    /// Columns of the weight.
    pub in_features: u32,
    /// The rank of its LoRA term, 0 without one.
    pub rank: u32,
    /// The most rows that are multiplied by it.
    pub rows: u32,
}

impl WorkspaceQuery {
    /// The query for the summed input gradient of layers that read the same input.
    pub fn grouped<const N: usize>(layers: [Self; N]) -> Self {
        let sum = |of: fn(&Self) -> u32| layers.iter().map(|layer| round_up(of(layer), 4)).sum::<u32>();
        // A quad for the powers of each.
        let out_features = sum(|layer| layer.out_features) + 4 * (N as u32 - 1);
        Self { out_features, rank: sum(|layer| layer.rank), ..layers[0] }
    }
}

/// Bytes of scratch for the operands that linear layers convert first, the most of all queries. On software adapters that is the
/// decoded panel of a weight, bounded and enough for 4 columns of any width, or its decoded scales; with cooperative matrices the
/// rows in f16.
pub fn panel_bytes(capabilities: &Capabilities, queries: impl IntoIterator<Item = WorkspaceQuery>) -> u64 {
    let one = |WorkspaceQuery { out_features, in_features, rank, rows }: WorkspaceQuery| {
        let scales = Code4::DECODED.map(|code| broadcast::scales_bytes(code, out_features, in_features));
        let decoded = scales.into_iter().fold(rows::panel_bytes(out_features, in_features, rank), u64::max);
        let rows_f16 = cooperative::rows_f16_bytes(rows, out_features.max(in_features), rank);
        let decoded = if capabilities.cpu { decoded } else { 16 };
        decoded.max(if capabilities.cooperative.is_some() { rows_f16 } else { 16 })
    };
    queries.into_iter().map(one).max().unwrap_or(16)
}

/// Bytes of scratch for partial results.
pub fn partials_bytes(capabilities: &Capabilities) -> u64 {
    if capabilities.cooperative.is_some() { cooperative::ALL_MAXIMA_BYTES } else { 16 }
}

pub(super) fn kernels() -> Vec<Kernel> {
    [tiled::kernels(), cooperative::kernels(), broadcast::kernels(), rows::kernels(), few_rows::kernels()].concat()
}

/// The formulas in plain loops, in f64; the reference of every variant.
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin {
    /// `a [m, k] b [k, n]` with b given by index.
    pub(crate) fn multiply(a: &[f64], m: usize, k: usize, n: usize, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        (0..m * n).map(|at| (0..k).map(|i| a[at / n * k + i] * b(i, at % n)).sum()).collect()
    }
}
