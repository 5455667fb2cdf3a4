//! The gated delta rule of a linear attention (Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks"; transformers'
//! `Qwen3_5GatedDeltaNet`). Per value head and row t, with a state S of `key_dim x value_dim` that is 0 where a sequence begins:
//!
//! `q = q' / sqrt(|q'|^2 + 1e-6) / sqrt(key_dim)`, `k = k' / sqrt(|k'|^2 + 1e-6)`, `beta = sigmoid(b)`,
//! `g = -exp(a_log) softplus(a + dt_bias)`; then `S~ = e^g S_(t-1)`, `r = v - S~^T k`, `S_t = S~ + k (beta r)^T`, `out = S_t^T q`.
//! A key head serves `value_heads / key_heads` value heads that lie side by side.
//!
//! Backward, with D the gradient of the result, and P that of S_t, which is 0 behind the end of a sequence: `P += q D^T`,
//! `dv = beta P^T k`, `dS~ = P - k dv^T`, and `e^g dS~` is the gradient of S_(t-1). Then `dq = S_t D`, `dk = beta P r - S~ dv`,
//! `db = (1 - beta) dv . r`. Since `dg = <dS~, S~>`, and `<P, S_t>` is both `dg_(t+1) + D . out` and `dg_t + dv . v`:
//! `dg_t = dg_(t+1) + D . out - dv . v`, where `D . out` is `q . dq`.
//!
//! The columns of S are independent as long as r is computed from it, those of its gradient until dv is known, and the rows of both from
//! then on. So one pass over the rows remakes r, one back over them finds dv, and the rest is summed interval by interval, beginning from
//! the states that both passes left.
//!
//! GPUs take 32 rows at a time where a pass has more than a few, since products of matrices keep them busier than row after row. Let
//! `E_t` be the decay from the state `S` before the chunk to row t, `G_ts` that from row s to row t, and `X_s` that to the end. Over the
//! rows of a chunk, with `u = beta r` and `T_ts = G_ts (k_t . k_s) beta_s` for s < t: `(I + T) r = v - E K S`,
//! `out = E Q S + (G Q K^T) u` for s <= t, and the state behind it is `E_end S + (X K)^T u`. Backward, with dS the gradient of that:
//! `du = (G Q K^T)^T D + X K dS`, `(I + T)^T dv = beta du`, the gradient of S is `E_end dS + (E Q)^T D - (E K)^T dv`,
//! `dq = E D S^T + (G D u^T) K`, and `dk = (G D u^T)^T Q + X u dS^T - E dv S^T - (G dv u^T) K - (G dv u^T)^T K`.

#[cfg(test)]
mod tests;
#[cfg(any(test, not(target_arch = "wasm32")))]
pub(crate) mod twin;

use super::column_gradient;
use super::elementwise::assert_alike;
use super::lib_parts::REDUCE;
use crate::gpu::{Kernel, Matrix, Recorder, VIEW_ALIGNMENT, View, params, round_up};

const CHUNKS: &str = shader!("lib/delta_chunk.wgsl");
const COMMON: &str = shader!("lib/delta_rule.wgsl");
const GATES: &str = shader!("lib/delta_gates.wgsl");
const STATE: &str = shader!("lib/delta_state.wgsl");
const REDUCE4: &str = shader!("lib/reduce4.wgsl");

/// Features of the widest heads that the kernels take.
pub const MAX_HEAD_DIM: u32 = 256;
/// Rows between two states that the backward pass keeps, or a power of two times as many where the states would take more bytes than
/// this.
const MIN_INTERVAL: u32 = 64;
const STATE_BYTES: u64 = 32 << 20;
/// Rows of a chunk.
const CHUNK: u32 = 32;
/// Passes of fewer rows go row after row on GPUs too.
const FEWEST_CHUNKED: u32 = 8;
/// Columns of a head's state, or its features, in a workgroup of a chunk's kernels, and their invocations.
const TILE_COLS: u32 = 32;
const CHUNK_WG: u32 = 128;
/// Columns or rows of a state in a workgroup: on a software adapter one vector of them.
const LANES: u32 = 8;
const SIDE: u32 = 32;
/// Invocations that share a column or row on a GPU, so that each keeps few enough numbers for its registers.
const PARTS: u32 = 4;
/// Invocations of the kernels beside the states.
const WG_SIZE: u32 = 64;

params! {
    /// Mirrors `Params` of delta_rule.wgsl in shaders/lib.
    struct Params {
        rows: u32,
        key_heads: u32,
        value_heads: u32,
        key_dim: u32,
        value_dim: u32,
        ld: u32,
        out_ld: u32,
        gate_ld: u32,
        interval: u32,
        chunks: u32,
        carried: u32,
        anchors: u32,
        first_head: u32,
        heads: u32,
    }
}

/// The heads of a layer. `value_heads` is a multiple of `key_heads`; `key_dim` and `value_dim` are multiples of 4 up to
/// [`MAX_HEAD_DIM`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of query heads, and of key heads.
    pub key_heads: u32,
    /// Number of value heads.
    pub value_heads: u32,
    /// Features of a query or key head.
    pub key_dim: u32,
    /// Features of a value head.
    pub value_dim: u32,
}

impl Shape {
    /// Columns of q, k and v together.
    pub fn qkv_cols(self) -> u32 {
        2 * self.key_heads * self.key_dim + self.out_cols()
    }

    /// Columns of the result.
    pub fn out_cols(self) -> u32 {
        self.value_heads * self.value_dim
    }

    /// Columns of the factors.
    pub fn factor_cols(self) -> u32 {
        4 * self.value_heads
    }

    /// Bytes of the state that [`forward`] goes on from, f32 `[value_heads][value_dim][key_dim]`.
    pub fn state_bytes(self) -> u64 {
        4 * u64::from(self.out_cols()) * u64::from(self.key_dim)
    }

    /// Bytes of the scratch that [`backward`] needs for `rows` rows.
    pub fn scratch_bytes(self, rows: u32) -> u64 {
        self.scratch_parts(rows).iter().map(|bytes| bytes.next_multiple_of(VIEW_ALIGNMENT)).sum()
    }

    /// Bytes of the scratch of products within chunks, which both directions need for `rows` rows.
    pub fn pairs_bytes(self, rows: u32) -> u64 {
        8 * u64::from(round_up(rows, CHUNK)) * u64::from(self.value_heads) * u64::from(CHUNK)
    }

    /// Rows between two kept states, and their number.
    fn intervals(self, rows: u32) -> (u32, u32) {
        let mut interval = MIN_INTERVAL;
        while interval < rows && 2 * u64::from(rows.div_ceil(interval)) * self.state_bytes() > STATE_BYTES {
            interval *= 2;
        }
        (interval, rows.div_ceil(interval))
    }

    /// Heads whose states are kept at a time where there is one for each chunk.
    fn chunked_heads(self, rows: u32) -> u32 {
        let of_head = 2 * u64::from(rows.div_ceil(CHUNK)) * self.state_bytes() / u64::from(self.value_heads);
        (STATE_BYTES / of_head.max(1)).clamp(1, u64::from(self.value_heads)) as u32
    }

    /// Bytes of the differences between values and what the state held, the states and their gradients, the gradients of queries and
    /// keys by value head, the products that the decays' gradients begin from, and their terms: as many as either form needs.
    fn scratch_parts(self, rows: u32) -> [u64; 5] {
        let heads = u64::from(self.value_heads);
        let (cells, intervals, chunks) =
            (u64::from(rows) * heads, u64::from(self.intervals(rows).1), u64::from(rows.div_ceil(CHUNK)));
        let of_chunks = 2 * chunks * (self.state_bytes() / heads) * u64::from(self.chunked_heads(rows));
        let anchors = intervals * u64::from(round_up(self.key_dim, LANES));
        let of_chunks_anchors = chunks * u64::from(self.value_dim.div_ceil(TILE_COLS));
        [
            4 * cells * u64::from(self.value_dim),
            of_chunks.max(2 * intervals * self.state_bytes()),
            8 * cells * u64::from(self.key_dim),
            4 * heads * anchors.max(of_chunks_anchors),
            4 * u64::from(rows) * u64::from(round_up(self.value_heads, 4)),
        ]
    }
}

/// The form of the kernel that goes forward row after row: the columns of a workgroup, and the invocations that share each of them. A GPU's
/// has workgroup memory and barriers.
fn row_form(cpu: bool) -> (u32, u32) {
    if cpu { (LANES, 1) } else { (SIDE, PARTS) }
}

fn rows_forward_kernel(cpu: bool, shape: Shape, remake: bool) -> Kernel {
    let (cols, parts) = row_form(cpu);
    Kernel::new::<Params>("delta_rule", shader!("delta_rule.wgsl"))
        .part(COMMON)
        .constant("STAGED", !cpu)
        .constant("COLS", cols)
        .constant("PARTS", parts)
        .constant("QUADS", shape.key_dim.div_ceil(4 * parts))
        .constant("BLOCK", if shape.key_dim > MAX_HEAD_DIM / 2 { 4 } else { 8 })
        .constant("REMAKE", remake)
}

/// The kernels of the backward pass row after row, which only software adapters take.
fn by_rows_kernel(name: &'static str, source: &'static str, dim: u32) -> Kernel {
    Kernel::new::<Params>(name, source).part(COMMON).constant("LANES", LANES).constant("QUADS", dim / 4)
}

fn rows_backward_kernel(shape: Shape) -> Kernel {
    by_rows_kernel("delta_rule_backward", shader!("delta_rule_backward.wgsl"), shape.key_dim)
}

fn rows_kernel(shape: Shape) -> Kernel {
    by_rows_kernel("delta_rule_rows", shader!("delta_rule_rows.wgsl"), shape.value_dim)
}

fn chunk_kernel(name: &'static str, source: &'static str) -> Kernel {
    Kernel::new::<Params>(name, source).part(COMMON).part(CHUNKS).constant("CHUNK", CHUNK)
}

/// The products of queries and keys with keys (true), or those of gradients with what was written.
fn pairs_kernel(keys: bool) -> Kernel {
    chunk_kernel("delta_rule_pairs", shader!("delta_rule_pairs.wgsl")).constant("KEYS", keys)
}

fn scan_kernel(shape: Shape, remake: bool) -> Kernel {
    chunk_kernel("delta_rule_scan", shader!("delta_rule_scan.wgsl"))
        .part(STATE)
        .constant("SLABS", shape.key_dim.div_ceil(64))
        .constant("TILE", if remake { 2 } else { 4 })
        .constant("REMAKE", remake)
}

fn scan_backward_kernel(shape: Shape) -> Kernel {
    chunk_kernel("delta_rule_scan_backward", shader!("delta_rule_scan_backward.wgsl"))
        .part(STATE)
        .part(REDUCE)
        .constant("WG_SIZE", CHUNK_WG)
        .constant("SLABS", shape.key_dim.div_ceil(64))
}

fn chunk_rows_kernel() -> Kernel {
    chunk_kernel("delta_rule_chunk_rows", shader!("delta_rule_chunk_rows.wgsl"))
}

fn factors_kernel() -> Kernel {
    Kernel::new::<Params>("delta_factors", shader!("delta_factors.wgsl"))
        .part(COMMON)
        .part(GATES)
        .constant("WG_SIZE", WG_SIZE)
}

fn qk_kernel(cpu: bool) -> Kernel {
    Kernel::new::<Params>("delta_rule_qk", shader!("delta_rule_qk.wgsl"))
        .part(COMMON)
        .part(REDUCE4)
        .constant("WG_SIZE", if cpu { LANES } else { SIDE })
}

fn decay_kernel() -> Kernel {
    Kernel::new::<Params>("delta_rule_decay", shader!("delta_rule_decay.wgsl"))
        .part(COMMON)
        .part(GATES)
        .constant("WG_SIZE", WG_SIZE)
}

pub(super) fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![factors_kernel(), qk_kernel(false), qk_kernel(true), decay_kernel(), chunk_rows_kernel()];
    kernels.extend([false, true].map(pairs_kernel));
    for dim in [4, 20, 64, 128, 256] {
        let shape = Shape { key_heads: 1, value_heads: 1, key_dim: dim, value_dim: dim };
        kernels.extend(
            [(false, false), (true, false), (true, true)].map(|(cpu, remake)| rows_forward_kernel(cpu, shape, remake)),
        );
        kernels.extend([rows_backward_kernel(shape), rows_kernel(shape), scan_backward_kernel(shape)]);
        kernels.extend([false, true].map(|remake| scan_kernel(shape, remake)));
    }
    kernels
}

/// The operands that both directions read.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Numbers and sizes of the heads.
    pub shape: Shape,
    /// The position of each row in its sequence, u32. Sequences lie one after the other.
    pub positions: View,
    /// q, k and v before they get their lengths, `[rows, 2 * key_heads * key_dim + value_heads * value_dim]`.
    pub qkv: Matrix,
    /// The raw decays, `[rows, value_heads]`.
    pub a: Matrix,
    /// The raw write strengths, `[rows, value_heads]`.
    pub b: Matrix,
    /// The logarithm of the decays' factor, f32 `[value_heads]`.
    pub a_log: View,
    /// The addition to the raw decays, f32 `[value_heads]`.
    pub dt_bias: View,
    /// Scratch, `[rows, 4 * value_heads]`, of any content before and after each direction.
    pub factors: Matrix,
    /// Scratch of [`Shape::pairs_bytes`], of any content before and after each direction.
    pub pairs: View,
}

/// The operands of the backward pass alone.
#[derive(Clone, Copy, Debug)]
pub struct Gradients {
    /// The gradient of the result, `[rows, value_heads * value_dim]`.
    pub dout: Matrix,
    /// [`Shape::scratch_bytes`], of any content before and after.
    pub scratch: View,
    /// Takes the gradient of `qkv`.
    pub dqkv: Matrix,
    /// Takes the gradient of `a`.
    pub da: Matrix,
    /// Takes the gradient of `b`.
    pub db: Matrix,
    /// The gradients of `a_log` and of `dt_bias`, f32 `[value_heads]` each, which are added to; None where neither is trained.
    pub of_vectors: Option<[View; 2]>,
}

impl Operands {
    /// The parameters with a result or its gradient, once the shapes are checked.
    fn params(&self, chunked: bool, out: Matrix) -> Params {
        let Self { shape, positions, qkv, a, b, a_log, dt_bias, factors, pairs } = *self;
        let Shape { key_heads, value_heads, key_dim, value_dim } = shape;
        assert!(key_heads > 0 && value_heads > 0 && value_heads.is_multiple_of(key_heads), "{shape:?}");
        let takes = |dim: u32| dim > 0 && dim.is_multiple_of(4) && dim <= MAX_HEAD_DIM;
        assert!(takes(key_dim) && takes(value_dim), "a size that is no multiple of 4 up to {MAX_HEAD_DIM}: {shape:?}");
        let rows = qkv.rows;
        assert_eq!(qkv.cols, shape.qkv_cols(), "{qkv:?} for {shape:?}");
        assert_eq!((out.rows, out.cols, out.ld), (rows, shape.out_cols(), out.cols), "{out:?} for {shape:?}");
        assert_eq!((a.rows, a.cols), (rows, value_heads), "{a:?} for {shape:?}");
        assert_eq!(a.ld, round_up(value_heads, 4), "{a:?} for {shape:?}");
        assert_alike(&[a, b]);
        assert_eq!((factors.rows, factors.cols), (rows, shape.factor_cols()), "{factors:?} for {shape:?}");
        assert!(positions.bytes >= 4 * u64::from(rows), "{positions:?} for {rows} rows");
        assert!([a_log, dt_bias].iter().all(|vector| vector.bytes >= 4 * u64::from(value_heads)), "{self:?}");
        assert!(pairs.bytes >= shape.pairs_bytes(rows), "{pairs:?} for {rows} rows of {shape:?}");
        let (interval, chunks) = if chunked { (CHUNK, rows.div_ceil(CHUNK)) } else { shape.intervals(rows) };
        Params {
            rows,
            key_heads,
            value_heads,
            key_dim,
            value_dim,
            ld: qkv.ld,
            out_ld: out.ld,
            gate_ld: a.ld,
            interval,
            chunks,
            carried: 0,
            anchors: if chunked { value_dim.div_ceil(TILE_COLS) } else { round_up(key_dim, LANES) },
            first_head: 0,
            heads: value_heads,
        }
    }

    /// Multiply-adds of one product with the states of all rows.
    fn work(&self) -> u64 {
        u64::from(self.qkv.rows) * u64::from(self.shape.out_cols()) * u64::from(self.shape.key_dim)
    }

    fn factors(&self, rec: &mut Recorder, op: &'static str, params: &Params) {
        let Self { positions, qkv, a, b, a_log, dt_bias, factors, .. } = *self;
        let cells = u64::from(params.rows) * u64::from(params.value_heads);
        let groups = rec.fold(cells.div_ceil(u64::from(WG_SIZE)));
        let views = [positions, qkv.view, a.view, b.view, a_log, dt_bias, factors.view];
        rec.dispatch(op, factors_kernel(), &views, params, groups, 2 * cells * u64::from(params.key_dim));
    }

    fn key_pairs(&self, rec: &mut Recorder, op: &'static str, params: &Params) {
        let cells = u64::from(params.chunks) * u64::from(params.heads);
        let groups = rec.fold(cells);
        let views = [self.qkv.view, self.qkv.view, self.qkv.view, self.factors.view, self.pairs];
        let work = 4 * cells * u64::from(CHUNK * CHUNK) * u64::from(params.key_dim);
        rec.dispatch(op, pairs_kernel(true), &views, params, groups, work);
    }
}

/// Workgroups of the scans of a number of heads.
fn column_groups(rec: &Recorder, shape: Shape, heads: u32, columns: u32) -> [u32; 3] {
    rec.fold(u64::from(heads) * u64::from(shape.value_dim.div_ceil(columns)))
}

/// `out`, `[rows, value_heads * value_dim]`. With a `state` of [`Shape::state_bytes`] all rows are of one sequence: they go on from it,
/// unless the first is at position 0, and leave it as it is behind the last one. Without one every sequence starts in the pass.
pub fn forward(rec: &mut Recorder, of: &Operands, state: Option<View>, out: Matrix) {
    const OP: &str = "delta_rule";
    let cpu = rec.capabilities.cpu;
    let shape = of.shape;
    assert!(state.is_none_or(|state| state.bytes >= shape.state_bytes()), "{state:?} for {shape:?}");
    let chunked = !cpu && of.qkv.rows >= FEWEST_CHUNKED;
    let params = Params { carried: u32::from(state.is_some()), ..of.params(chunked, out) };
    of.factors(rec, OP, &params);
    let (qkv, factors, state) = (of.qkv.view, of.factors.view, state.unwrap_or(rec.unused_write));
    if chunked {
        of.key_pairs(rec, OP, &params);
        let groups = column_groups(rec, shape, shape.value_heads, TILE_COLS);
        let views = [qkv, factors, of.pairs, state, out.view];
        rec.dispatch(OP, scan_kernel(shape, false), &views, &params, groups, 4 * of.work());
    } else {
        let groups = column_groups(rec, shape, shape.value_heads, row_form(cpu).0);
        let views = [qkv, qkv, factors, state, out.view];
        rec.dispatch(OP, rows_forward_kernel(cpu, shape, false), &views, &params, groups, 4 * of.work());
    }
}

/// The parts of the backward pass's scratch.
#[derive(Clone, Copy)]
struct ScratchParts {
    differences: View,
    states: View,
    dqk: View,
    anchors: View,
    decays: View,
}

impl ScratchParts {
    fn of(scratch: View, shape: Shape, rows: u32) -> Self {
        let mut begin = 0;
        let [differences, states, dqk, anchors, decays] = shape.scratch_parts(rows).map(|bytes| {
            let part = scratch.slice(begin, bytes);
            begin += bytes.next_multiple_of(VIEW_ALIGNMENT);
            part
        });
        Self { differences, states, dqk, anchors, decays }
    }
}

const BACKWARD: &str = "delta_rule_backward";

/// The gradients of the values, and of queries and keys by value head, row after row.
fn backward_by_rows(rec: &mut Recorder, of: &Operands, gradients: &Gradients, parts: ScratchParts, params: &Params) {
    let (shape, qkv, factors) = (of.shape, of.qkv.view, of.factors.view);
    let (dout, dqkv) = (gradients.dout.view, gradients.dqkv.view);
    let ScratchParts { differences, states, dqk, anchors, .. } = parts;
    let columns = column_groups(rec, shape, shape.value_heads, LANES);
    let views = [qkv, qkv, factors, states, differences];
    rec.dispatch(BACKWARD, rows_forward_kernel(true, shape, true), &views, params, columns, 3 * of.work());
    let views = [qkv, factors, dout, states, dqkv];
    rec.dispatch(BACKWARD, rows_backward_kernel(shape), &views, params, columns, 4 * of.work());
    let tiles = u64::from(shape.key_dim.div_ceil(LANES));
    let groups = rec.fold(u64::from(params.chunks) * u64::from(shape.value_heads) * tiles);
    let views = [qkv, factors, dout, dqkv, differences, states, dqk, anchors];
    rec.dispatch(BACKWARD, rows_kernel(shape), &views, params, groups, 8 * of.work());
}

/// [`backward_by_rows`] in chunks, for as many heads at a time as the parameters have.
fn backward_by_chunks(rec: &mut Recorder, of: &Operands, gradients: &Gradients, parts: ScratchParts, params: &Params) {
    let (shape, qkv, factors, pairs) = (of.shape, of.qkv.view, of.factors.view, of.pairs);
    let (dout, dqkv) = (gradients.dout.view, gradients.dqkv.view);
    let ScratchParts { differences, states, dqk, anchors, .. } = parts;
    let at_a_time = params.heads;
    for first_head in (0..shape.value_heads).step_by(at_a_time as usize) {
        let heads = at_a_time.min(shape.value_heads - first_head);
        let params = &Params { first_head, heads, ..*params };
        let work = of.work() * u64::from(heads) / u64::from(shape.value_heads);
        of.key_pairs(rec, BACKWARD, params);
        let columns = column_groups(rec, shape, heads, TILE_COLS);
        let views = [qkv, factors, pairs, states, differences];
        rec.dispatch(BACKWARD, scan_kernel(shape, true), &views, params, columns, 3 * work);
        let views = [qkv, factors, pairs, dout, states, dqkv, anchors];
        rec.dispatch(BACKWARD, scan_backward_kernel(shape), &views, params, columns, 4 * work);
        let cells = u64::from(params.chunks) * u64::from(heads);
        let groups = rec.fold(cells);
        let views = [dout, dqkv, differences, factors, pairs];
        let of_pairs = 4 * cells * u64::from(CHUNK * CHUNK) * u64::from(shape.value_dim);
        rec.dispatch(BACKWARD, pairs_kernel(false), &views, params, groups, of_pairs);
        let groups = rec.fold(cells * u64::from(shape.key_dim.div_ceil(TILE_COLS)));
        let views = [qkv, factors, pairs, dout, dqkv, differences, states, dqk];
        rec.dispatch(BACKWARD, chunk_rows_kernel(), &views, params, groups, 8 * work);
    }
}

/// The gradients of everything that [`forward`] reads but the positions. Every sequence starts in the pass.
pub fn backward(rec: &mut Recorder, of: &Operands, gradients: &Gradients) {
    backward_of_heads(rec, of, gradients, of.shape.chunked_heads(of.qkv.rows));
}

/// [`backward`] with the states of as many heads at a time.
fn backward_of_heads(rec: &mut Recorder, of: &Operands, gradients: &Gradients, at_a_time: u32) {
    let Gradients { dout, scratch, dqkv, da, db, of_vectors } = *gradients;
    let cpu = rec.capabilities.cpu;
    let shape = of.shape;
    let params = of.params(!cpu, dout);
    assert_alike(&[of.qkv, dqkv]);
    assert_alike(&[of.a, da, db]);
    assert!(scratch.bytes >= shape.scratch_bytes(params.rows), "{scratch:?} for {} rows of {shape:?}", params.rows);
    let parts = ScratchParts::of(scratch, shape, params.rows);
    of.factors(rec, BACKWARD, &params);
    if cpu {
        backward_by_rows(rec, of, gradients, parts, &params);
    } else {
        backward_by_chunks(rec, of, gradients, parts, &Params { heads: at_a_time, ..params });
    }
    let (qkv, factors) = (of.qkv.view, of.factors.view);
    let ScratchParts { differences, dqk, anchors, decays, .. } = parts;
    let cells = u64::from(params.rows) * u64::from(shape.key_heads);
    let groups = rec.fold(cells);
    let views = [qkv, factors, differences, dqk, decays, dqkv.view, db.view];
    let work = 4 * u64::from(params.rows) * u64::from(shape.qkv_cols());
    rec.dispatch(BACKWARD, qk_kernel(cpu), &views, &params, groups, work);
    let groups = rec.fold((u64::from(params.chunks) * u64::from(shape.value_heads)).div_ceil(u64::from(WG_SIZE)));
    let views = [of.a.view, of.a_log, of.dt_bias, factors, anchors, decays, da.view];
    let work = u64::from(params.rows) * u64::from(shape.value_heads);
    rec.dispatch(BACKWARD, decay_kernel(), &views, &params, groups, work);
    if let Some([of_a_log, of_dt_bias]) = of_vectors {
        column_gradient::bias(rec, Matrix { view: decays, ..da }, of_a_log);
        column_gradient::bias(rec, da, of_dt_bias);
    }
}
