//! DoRA's norms on the device: those of the base once it is loaded, and the factors of the outputs whenever factors of the adapter have
//! changed. [`crate::ops::dora`] has the formulas.

use super::adapter::{DeviceAdapter, DeviceModule};
use super::base::Network;
use crate::gpu::{Arena, Lifetime, Matrix, MemoryPlan, Recorder, View};
use crate::lora::factors::Factor;
use crate::ops::bias_sum;
use crate::ops::dora;
use crate::ops::linear::{self, LowRank};

/// Matrices over the rows of one module's A, which are needed between passes only.
#[derive(Clone, Copy, Debug)]
pub struct RankWorkspace {
    /// A with rows that kernels can multiply, `[rank, in]`.
    rows: Matrix,
    /// `A A^T`, `[rank, rank]`.
    gram: Matrix,
    /// `W A^T + s/2 B (A A^T)`, transposed: `[rank, out]`.
    product: Matrix,
}

impl RankWorkspace {
    /// Plans the matrices for the largest module of `adapters`; `None` where none has magnitudes.
    pub fn plan(
        plan: &mut MemoryPlan,
        arena: &mut Arena,
        adapters: &[DeviceAdapter],
        lifetime: &Lifetime,
    ) -> Option<Self> {
        let rank = largest_rank(adapters)?;
        let modules = || adapters.iter().flat_map(DeviceAdapter::dora_modules).map(|(_, _, module)| module);
        let inputs = modules().map(|module| module[Factor::A].weight.in_features).max()?;
        let outputs = modules().map(|module| module[Factor::B].weight.out_features).max()?;
        let mut matrix = |label, cols| arena.matrix(plan, label, rank, cols, std::slice::from_ref(lifetime));
        Some(Self { product: matrix("W A^T", outputs), rows: matrix("rows of A", inputs), gram: matrix("A A^T", rank) })
    }
}

/// The largest rank of the modules with magnitudes; `None` where there is none.
pub fn largest_rank(adapters: &[DeviceAdapter]) -> Option<u32> {
    adapters.iter().flat_map(DeviceAdapter::dora_modules).map(|(_, _, module)| module.rank).max()
}

/// Records the norms of the base's rows, once after loading. They are the first magnitudes too, which an adapter's own replace.
pub fn record_norms(rec: &mut Recorder, network: &Network, adapter: &DeviceAdapter) {
    for (layer, projection, module) in adapter.dora_modules() {
        let Some((outputs, magnitude)) = module.dora() else { continue };
        dora::norms(rec, network.layers[layer].projection(projection), outputs.squares, magnitude.values);
    }
}

/// Records what follows from the adapter's factors of now, between passes: the sums of biases, and DoRA's factors of every output.
pub fn record_factors(
    rec: &mut Recorder,
    network: &Network,
    adapter: &DeviceAdapter,
    workspace: Option<&RankWorkspace>,
) {
    for (layer, projection, module) in adapter.layer_modules() {
        let own = module.factor(Factor::Bias).map(|bias| bias.values);
        add_bias(rec, module, own.or(network.layers[layer].projection(projection).bias));
    }
    adapter.head().into_iter().for_each(|head| add_bias(rec, head, None));
    let Some(workspace) = workspace else { return };
    for (layer, projection, module) in adapter.dora_modules() {
        let Some((outputs, magnitude)) = module.dora() else { continue };
        let weight = network.layers[layer].projection(projection).without_bias();
        let (a, b) = (&module[Factor::A], module[Factor::B].values);
        let of = |matrix: Matrix, cols| columns(matrix.first_rows(module.rank), cols);
        let rows = rows_of(rec, a.values, of(workspace.rows, weight.in_features));
        let gram = of(workspace.gram, module.rank);
        linear::forward(rec, rows, &a.weight, None, gram, false);
        let product = of(workspace.product, weight.out_features);
        let term = LowRank { product: gram, factor: b, scale: module.scale / 2.0 };
        linear::forward(rec, rows, &weight, Some(term), product, false);
        dora::factors(rec, outputs, magnitude.values, (b, product), module.scale);
    }
}

/// Computes the sum of a module's bias and that of its B, where B has one.
fn add_bias(rec: &mut Recorder, module: &DeviceModule, bias: Option<View>) {
    if let Some((sum, addend)) = module.bias_sum.zip(module.factor(Factor::LoraBias)) {
        bias_sum::bias_sum(rec, addend.weight.out_features, bias, (addend.values, module.scale), sum);
    }
}

/// A factor, whose rows have no padding, as a matrix: where it lies, if its rows need none, else copied to `padded`.
fn rows_of(rec: &mut Recorder, values: View, padded: Matrix) -> Matrix {
    if padded.ld == padded.cols {
        return Matrix { view: values, ..padded };
    }
    let bytes = 4 * u64::from(padded.cols);
    for row in (0..padded.rows).map(u64::from) {
        let part = |view: View, stride: u64| View { offset: view.offset + row * stride, bytes, ..view };
        rec.copy(part(values, bytes), part(padded.view, 4 * u64::from(padded.ld)));
    }
    padded
}

/// The first `cols` columns of a buffer that was planned for more; rows move together.
pub fn columns(buffer: Matrix, cols: u32) -> Matrix {
    let ld = crate::gpu::round_up(cols, 4);
    let bytes = 4 * u64::from(buffer.rows) * u64::from(ld);
    Matrix { cols, ld, view: View { bytes, ..buffer.view }, ..buffer }
}
