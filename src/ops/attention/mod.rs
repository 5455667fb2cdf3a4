//! Causal grouped-query attention over a stream of rows, in memory linear in its length (Dao 2023, FlashAttention-2).
//!
//! Query row i of head h sees the keys j of its range, one contiguous stretch, in head `h / (heads / kv_heads)` of k and v:
//! `s_ij = scale q_i . k_j`, bounded by `cap tanh(s_ij / cap)` where a model bounds its scores (Gemma 2), `p_ij = exp(s_ij - lse_i)`, `lse_i = log sum_j exp(s_ij)`, `out_i = sum_j p_ij v_j`.
//! Segments, causality and sliding windows are all said by the ranges; what lies outside is not visited.
//!
//! Where heads have sinks (gpt-oss), a head's sink `e` is one more score, which reads no value: with `l_i` the log-sum-exp of the scores,
//! `lse_i = log(exp(l_i) + exp(e))`, and out is `sigmoid(l_i - e)` times that without sinks. The backward pass is the same, from these two.
//!
//! Backward, with `delta_i = dout_i . out_i` and `ds_ij = p_ij (dout_i . v_j - delta_i)`: `dq_i = scale sum_j ds_ij k_j`,
//! `dk_j = scale sum_i ds_ij q_i`, `dv_j = sum_i p_ij dout_i`. The scores are computed again, once per query tile for dq and
//! once per key tile for dk and dv, so that nothing is summed across workgroups and the bits do not depend on their order.

#[cfg(test)]
mod tests;
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin;

use std::ops::Range;

use super::VariantFamily;
use crate::gpu::{Kernel, Matrix, Recorder, View, params};

const COMMON: &str = shader!("lib/attention_common.wgsl");
const SCRATCH: &str = shader!("lib/attention_scratch.wgsl");
const TILE_PART: &str = shader!("lib/attention_tile.wgsl");
const FORWARD_LANES: &str = shader!("attention_forward_lanes.wgsl");
const FORWARD_TILES: &str = shader!("attention_forward_tiles.wgsl");
const SINKS: &str = shader!("attention_sinks.wgsl");
const DELTA: &str = shader!("attention_delta.wgsl");
const DQ_LANES: &str = shader!("attention_dq_lanes.wgsl");
const DQ_TILES: &str = shader!("attention_dq_tiles.wgsl");
const DKV_LANES: &str = shader!("attention_dkv_lanes.wgsl");
const DKV_TILES: &str = shader!("attention_dkv_tiles.wgsl");

/// Invocations of a workgroup of the variants for software adapters: one vector register of lanes.
const LANES: u32 = VariantFamily::LANES;
/// Rows of the other side that those variants read at a time, and with an exchange between the lanes: one a lane.
const BLOCK: u32 = 2;
/// The text for wider heads takes too long to compile, and for fewer items than `FEW_ITEMS` that of many a lane does.
const MAX_BROADCAST_HEAD_DIM: u32 = 128;
/// Wider heads take the variants for GPUs on these adapters too: those for lanes write out every column.
const MAX_LANES_HEAD_DIM: u32 = 256;
const FEW_ITEMS: u64 = 256;
/// The elementwise pass before the backward has no reason to stay that narrow.
const DELTA_LANES: u32 = 64;
/// Rows on either side of a tile of the variants for GPUs; attention_tile.wgsl has it too.
const TILE: u32 = 32;
/// Groups of 64 threads in a workgroup of those variants, and quads of columns that one of their threads sums.
const MAX_SIDES: u32 = 4;
const MAX_CHUNKS: u32 = 2;
/// Features of the widest head that the kernels take.
pub const MAX_HEAD_DIM: u32 = 512;

/// The heads of one attention layer. `heads` is a multiple of `kv_heads`, `head_dim` a multiple of 4 up to [`MAX_HEAD_DIM`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of query heads.
    pub heads: u32,
    /// Number of key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: u32,
    /// Features of one head.
    pub head_dim: u32,
}

params! {
    /// Mirrors `Params` of attention_common.wgsl; strides in vec4s.
    struct Params {
        rows: u32,
        keys: u32,
        heads: u32,
        kv_heads: u32,
        q_ld: u32,
        k_ld: u32,
        v_ld: u32,
        out_ld: u32,
        dout_ld: u32,
        dq_ld: u32,
        dk_ld: u32,
        dv_ld: u32,
        scale: f32,
        score_scale: f32,
        score_cap: f32,
        first_row: u32,
    }
}

impl Shape {
    /// Bytes of the scratch that [`backward`] needs for `rows` rows: 16 per row and 8 per row and head.
    pub fn scratch_bytes(self, rows: u32) -> u64 {
        8 * u64::from(rows) * (2 + u64::from(self.heads))
    }

    fn assert_queries(self, rows: u32, matrices: &[Matrix]) {
        let cols = self.heads * self.head_dim;
        assert!(matrices.iter().all(|m| (m.rows, m.cols) == (rows, cols)), "not {rows} x {cols}: {matrices:?}");
    }

    fn assert_keys(self, rows: u32, matrices: &[Matrix]) {
        let cols = self.kv_heads * self.head_dim;
        assert!(matrices.iter().all(|m| (m.rows, m.cols) == (rows, cols)), "not {rows} x {cols}: {matrices:?}");
    }

    /// Workgroups for `items` (query rows times the heads of a group, or keys) of every key head.
    fn workgroups(self, rec: &Recorder, items: u64, variant: &Variant) -> [u32; 3] {
        rec.fold(items.div_ceil(u64::from(variant.items)) * u64::from(self.kv_heads * variant.parts))
    }

    /// Multiply-adds of one product between all queries and keys, halved for causality.
    fn product_work(self, params: &Params) -> u64 {
        u64::from(params.rows) * u64::from(params.keys) * u64::from(self.heads) * u64::from(self.head_dim) / 2
    }
}

/// Which rows a kernel's threads own, and with them which it sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owned {
    /// Queries, and one sum: the output or its gradient.
    Queries,
    /// Keys, and two sums.
    Keys,
}

/// A kernel, the items or keys that a workgroup owns, and the workgroups that each sum a part of their columns.
struct Variant {
    kernel: Kernel,
    items: u32,
    parts: u32,
}

/// Rows that each lane owns. Every value loaded for all lanes serves each of them, which is what pays on these adapters; the
/// text, and with it the time to compile it, grows with `head_dim * items`, and faster than it where values are exchanged.
fn items_per_lane(family: VariantFamily, owned: Owned, head_dim: u32, items: u64) -> u32 {
    let columns = match (family, owned) {
        _ if items <= u64::from(LANES) => 1,
        (VariantFamily::Broadcast, _) if items < FEW_ITEMS => 64,
        (VariantFamily::Broadcast, Owned::Keys) => 128,
        _ => 256,
    };
    (columns / head_dim).clamp(1, 4)
}

/// The choice of a variant depends on these beside the device: the size of a head, the rows that lanes share, bounded scores, sinks.
#[derive(Clone, Copy)]
struct Problem {
    head_dim: u32,
    items: u64,
    capped: bool,
    sinks: bool,
}

/// A variant for software adapters.
fn lanes_variant(
    name: &'static str,
    source: &'static str,
    family: VariantFamily,
    owned: Owned,
    problem: Problem,
) -> Variant {
    let Problem { head_dim, items, capped, .. } = problem;
    let family = if head_dim > MAX_BROADCAST_HEAD_DIM { VariantFamily::Lanes } else { family };
    let broadcast = family == VariantFamily::Broadcast;
    let items_per_lane = items_per_lane(family, owned, head_dim, items);
    let kernel = Kernel::new::<Params>(name, source)
        .part(COMMON)
        .constant("D4", head_dim / 4)
        .constant("CAP", capped)
        .constant("LANES", LANES)
        .constant("ITEMS", items_per_lane)
        .constant("BROADCAST", broadcast)
        .constant("BLOCK", if broadcast { LANES } else { BLOCK });
    Variant { kernel, items: LANES * items_per_lane, parts: 1 }
}

/// A variant for GPUs. A thread keeps at most 32 numbers of the sums beside 16 of the scores, so that no compiler has to move any to
/// memory: wider heads take more threads, then more workgroups.
fn tiles_variant(name: &'static str, source: &'static str, owned: Owned, problem: Problem) -> Variant {
    let Problem { head_dim, capped, sinks, .. } = problem;
    let sides = if owned == Owned::Queries && head_dim <= 128 { 2 } else { MAX_SIDES };
    // Both sums of a key kernel lie side by side.
    let (sums, across) = if owned == Owned::Keys { (2, 16 * sides) } else { (1, 32 * sides) };
    let parts = head_dim.div_ceil(MAX_CHUNKS * across);
    let chunks = head_dim.div_ceil(parts * across);
    // Rows of the other side that are summed at a time, as many as fit into the memory that the scores take before.
    let rows = 512 * sides / (sums * chunks * across);
    let kernel = Kernel::new::<Params>(name, source)
        .part(COMMON)
        .part(TILE_PART)
        .constant("D4", head_dim / 4)
        .constant("CAP", capped)
        .constant("SINKS", sinks)
        .constant("SIDES", sides)
        .constant("HALF", sides / 2)
        .constant("SHARE", 4 / sides)
        .constant("CHUNKS", chunks)
        .constant("PARTS", parts)
        .constant("KEYS", 1 << rows.min(TILE).ilog2());
    Variant { kernel, items: TILE, parts }
}

/// The family whose variants take heads of this size.
fn taking(family: VariantFamily, problem: Problem) -> VariantFamily {
    if problem.head_dim > MAX_LANES_HEAD_DIM { VariantFamily::Tiles } else { family }
}

fn forward_variant(family: VariantFamily, problem: Problem) -> Variant {
    match taking(family, problem) {
        VariantFamily::Tiles => tiles_variant("attention_forward_tiles", FORWARD_TILES, Owned::Queries, problem),
        _ => lanes_variant("attention_forward_lanes", FORWARD_LANES, family, Owned::Queries, problem),
    }
}

fn dq_variant(family: VariantFamily, problem: Problem) -> Variant {
    let variant = match taking(family, problem) {
        VariantFamily::Tiles => tiles_variant("attention_dq_tiles", DQ_TILES, Owned::Queries, problem),
        _ => lanes_variant("attention_dq_lanes", DQ_LANES, family, Owned::Queries, problem),
    };
    Variant { kernel: variant.kernel.part(SCRATCH), ..variant }
}

fn dkv_variant(family: VariantFamily, problem: Problem) -> Variant {
    let variant = match taking(family, problem) {
        VariantFamily::Tiles => tiles_variant("attention_dkv_tiles", DKV_TILES, Owned::Keys, problem),
        _ => lanes_variant("attention_dkv_lanes", DKV_LANES, family, Owned::Keys, problem),
    };
    Variant { kernel: variant.kernel.part(SCRATCH), ..variant }
}

/// A pass over rows and heads beside attention itself.
fn beside_kernel(name: &'static str, source: &'static str, head_dim: u32) -> Kernel {
    Kernel::new::<Params>(name, source)
        .part(COMMON)
        .constant("D4", head_dim / 4)
        .constant("CAP", false)
        .constant("LANES", DELTA_LANES)
}

fn delta_kernel(head_dim: u32) -> Kernel {
    beside_kernel("attention_delta", DELTA, head_dim)
}

fn sinks_kernel(head_dim: u32) -> Kernel {
    beside_kernel("attention_sinks", SINKS, head_dim)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut kernels = Vec::new();
    for head_dim in [8, 64, 80, 96, 128, 256, 512] {
        kernels.extend([delta_kernel(head_dim), sinks_kernel(head_dim)]);
        let lanes = [VariantFamily::Lanes, VariantFamily::Broadcast]
            .map(|family| [(family, 1), (family, 100), (family, u64::MAX)]);
        for (family, items) in lanes.into_iter().flatten().chain([(VariantFamily::Tiles, 1)]) {
            // The models with bounded scores have wide heads.
            for capped in [false, true].into_iter().take(if head_dim < 128 { 1 } else { 2 }) {
                let problem = Problem { head_dim, items, capped, sinks: false };
                kernels.extend([forward_variant, dq_variant, dkv_variant].map(|make| make(family, problem).kernel));
            }
        }
        let problem = Problem { head_dim, items: 1, capped: false, sinks: true };
        kernels.extend([dq_variant, dkv_variant].map(|make| make(VariantFamily::Tiles, problem).kernel));
    }
    kernels
}

/// The operands that both directions read. q and out are `[rows, heads * head_dim]`, k and v `[keys, kv_heads * head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Numbers and size of the heads.
    pub shape: Shape,
    /// The factor of the scores, `1 / sqrt(head_dim)` in most models.
    pub scale: f32,
    /// The bound `c` of the scores, `c tanh(s / c)`; None where there is none.
    pub cap: Option<f32>,
    /// The sink of each head, f32 `[heads]`; None where there are none.
    pub sinks: Option<View>,
    /// Queries, `[rows, heads * head_dim]`.
    pub q: Matrix,
    /// Keys, `[keys, kv_heads * head_dim]`.
    pub k: Matrix,
    /// Values, `[keys, kv_heads * head_dim]`.
    pub v: Matrix,
    /// Per query row (first key, one past the last) as u32 pairs, within `keys`.
    pub key_ranges: View,
    /// The result of [`forward`], `[rows, heads * head_dim]`.
    pub out: Matrix,
    /// The logarithm of each score sum, f32 `[heads][rows]`, a result of [`forward`].
    pub lse: View,
}

/// The operands of the backward pass alone.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// Per key row the queries that may see it, as u32 pairs; of these, exactly those do whose key range holds it.
    pub query_ranges: View,
    /// The gradient of `out`, `[rows, heads * head_dim]`.
    pub dout: Matrix,
    /// [`Shape::scratch_bytes`], of any content before and after.
    pub scratch: View,
    /// Takes the gradient of q.
    pub dq: Matrix,
    /// Takes the gradient of k.
    pub dk: Matrix,
    /// Takes the gradient of v.
    pub dv: Matrix,
}

impl Operands {
    fn problem(&self, items: u64) -> Problem {
        let (head_dim, sinks) = (self.shape.head_dim, self.sinks.is_some());
        Problem { head_dim, items, capped: self.cap.is_some(), sinks }
    }

    /// The parameters of a forward pass, once the operands' shapes are checked.
    fn params(&self) -> Params {
        let Self { shape, scale, cap, sinks, q, k, v, key_ranges, out, lse } = *self;
        assert!(
            shape.kv_heads > 0 && shape.heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
            "query heads that do not divide among the key heads: {shape:?}"
        );
        assert!(
            shape.head_dim > 0 && shape.head_dim.is_multiple_of(4) && shape.head_dim <= MAX_HEAD_DIM,
            "a head dimension that is no multiple of 4 up to {MAX_HEAD_DIM}: {shape:?}"
        );
        shape.assert_queries(q.rows, &[q, out]);
        shape.assert_keys(k.rows, &[k, v]);
        assert!(sinks.is_none_or(|sinks| sinks.bytes >= 4 * u64::from(shape.heads)), "a sink per head: {sinks:?}");
        let rows = u64::from(q.rows);
        assert!(key_ranges.bytes >= 8 * rows, "a range for each of {rows} rows: {key_ranges:?}");
        assert!(lse.bytes >= 4 * rows * u64::from(shape.heads), "a value per row and head: {lse:?}");
        Params {
            rows: q.rows,
            keys: k.rows,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            q_ld: q.ld / 4,
            k_ld: k.ld / 4,
            v_ld: v.ld / 4,
            out_ld: out.ld / 4,
            scale,
            score_scale: scale * std::f32::consts::LOG2_E,
            score_cap: cap.unwrap_or_default() * std::f32::consts::LOG2_E,
            ..Params::default()
        }
    }
}

/// `out = softmax(scale q k^T) v` over each query's keys. A query with an empty range gets zeros and an `lse` of -1e30, or with sinks
/// that of its heads' sinks.
pub fn forward(rec: &mut Recorder, operands: &Operands) {
    forward_rows(rec, operands, 0..operands.q.rows);
}

/// [`forward`] for some of the rows; those of `lse` then lie as if there were no others.
pub fn forward_rows(rec: &mut Recorder, operands: &Operands, rows: Range<u32>) {
    let Operands { shape, q, k, v, key_ranges, out, lse, .. } = *operands;
    assert!(rows.end <= q.rows && !rows.is_empty(), "{rows:?} of {q:?}");
    let params = Params { rows: rows.len() as u32, first_row: rows.start, ..operands.params() };
    let items = u64::from(params.rows) * u64::from(shape.heads / shape.kv_heads);
    let views = [q.view, k.view, v.view, key_ranges, out.view, lse];
    let variant = forward_variant(VariantFamily::of(&rec.capabilities), operands.problem(items));
    let groups = shape.workgroups(rec, items, &variant);
    rec.dispatch("attention", variant.kernel, &views, &params, groups, 2 * shape.product_work(&params));
    if let Some(sinks) = operands.sinks {
        let cells = u64::from(params.rows) * u64::from(shape.heads);
        let groups = rec.fold(cells.div_ceil(u64::from(DELTA_LANES)));
        let work = cells * u64::from(shape.head_dim);
        rec.dispatch("attention_sinks", sinks_kernel(shape.head_dim), &[out.view, lse, sinks], &params, groups, work);
    }
}

/// Gradients of q, k and v from `dout`, with the `out` and `lse` of [`forward`]; as many keys as rows.
pub fn backward(rec: &mut Recorder, operands: &Operands, gradients: &Gradients) {
    let Operands { shape, q, k, v, key_ranges, out, lse, .. } = *operands;
    let Gradients { query_ranges, dout, scratch, dq, dk, dv } = *gradients;
    let params =
        Params { dout_ld: dout.ld / 4, dq_ld: dq.ld / 4, dk_ld: dk.ld / 4, dv_ld: dv.ld / 4, ..operands.params() };
    shape.assert_queries(q.rows, &[dout, dq]);
    shape.assert_keys(q.rows, &[k, dk, dv]);
    let rows = u64::from(q.rows);
    let cells = rows * u64::from(shape.heads);
    assert!(query_ranges.bytes >= 8 * rows, "a range for each of {rows} rows: {query_ranges:?}");
    assert!(scratch.bytes >= shape.scratch_bytes(q.rows), "too little scratch for {rows} rows: {scratch:?}");

    let views = [out.view, dout.view, lse, key_ranges, query_ranges, scratch];
    let groups = rec.fold(cells.div_ceil(u64::from(DELTA_LANES)));
    let work = cells * u64::from(shape.head_dim);
    rec.dispatch("attention_delta", delta_kernel(shape.head_dim), &views, &params, groups, work);

    let views = [q.view, k.view, v.view, dout.view, scratch, dq.view];
    let items = cells / u64::from(shape.kv_heads);
    let variant = dq_variant(VariantFamily::of(&rec.capabilities), operands.problem(items));
    let groups = shape.workgroups(rec, items, &variant);
    rec.dispatch("attention_dq", variant.kernel, &views, &params, groups, 3 * shape.product_work(&params));

    let views = [q.view, k.view, v.view, dout.view, scratch, dk.view, dv.view];
    let variant = dkv_variant(VariantFamily::of(&rec.capabilities), operands.problem(rows));
    let groups = shape.workgroups(rec, rows, &variant);
    rec.dispatch("attention_dkv", variant.kernel, &views, &params, groups, 4 * shape.product_work(&params));
}
