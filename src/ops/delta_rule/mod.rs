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

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod twin;

use super::column_gradient;
use super::elementwise::assert_alike;
use super::lib_parts::REDUCE;
use crate::gpu::{Kernel, Matrix, Recorder, VIEW_ALIGNMENT, View, params, round_up};

const COMMON: &str = shader!("lib/delta_rule.wgsl");
const GATES: &str = shader!("lib/delta_gates.wgsl");
const REDUCE4: &str = shader!("lib/reduce4.wgsl");

/// Features of the widest heads that the kernels take.
pub const MAX_HEAD_DIM: u32 = 256;
/// Rows between two states that the backward pass keeps, or a power of two times as many where the states would take more bytes than
/// this.
const MIN_INTERVAL: u32 = 64;
const STATE_BYTES: u64 = 32 << 20;
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

    /// Rows between two kept states, and their number.
    fn intervals(self, rows: u32) -> (u32, u32) {
        let mut interval = MIN_INTERVAL;
        while interval < rows && 2 * u64::from(rows.div_ceil(interval)) * self.state_bytes() > STATE_BYTES {
            interval *= 2;
        }
        (interval, rows.div_ceil(interval))
    }

    /// Bytes of the differences between values and what the state held, the states and their gradients, the gradients of queries and
    /// keys by value head, the products that the decays' gradients begin from, and their terms.
    fn scratch_parts(self, rows: u32) -> [u64; 5] {
        let (cells, chunks) = (u64::from(rows) * u64::from(self.value_heads), u64::from(self.intervals(rows).1));
        [
            4 * cells * u64::from(self.value_dim),
            2 * chunks * self.state_bytes(),
            8 * cells * u64::from(self.key_dim),
            4 * chunks * u64::from(self.value_heads) * u64::from(round_up(self.key_dim, LANES)),
            4 * u64::from(rows) * u64::from(round_up(self.value_heads, 4)),
        ]
    }
}

/// The forms of the kernels that go over the states.
#[derive(Clone, Copy)]
struct Form {
    /// Columns or rows of a workgroup.
    side: u32,
    /// Invocations that share each of them.
    parts: u32,
    /// True for workgroup memory and barriers.
    staged: bool,
}

impl Form {
    fn of(cpu: bool) -> Self {
        if cpu {
            Self { side: LANES, parts: 1, staged: false }
        } else {
            Self { side: SIDE, parts: PARTS, staged: true }
        }
    }

    /// A kernel whose invocations have a stretch of `dim` numbers of a state, `side` of them beside each other. As many rows as `block` are
    /// staged at a time for heads of up to 128 features, and half as many for wider ones.
    fn kernel(self, name: &'static str, source: &'static str, side: &'static str, dim: u32, block: u32) -> Kernel {
        Kernel::new::<Params>(name, source)
            .part(COMMON)
            .constant("STAGED", self.staged)
            .constant(side, self.side)
            .constant("PARTS", self.parts)
            .constant("QUADS", dim.div_ceil(4 * self.parts))
            .constant("BLOCK", if dim > MAX_HEAD_DIM / 2 { block / 2 } else { block })
    }

    /// A kernel whose workgroups have columns of a state and go over all rows.
    fn over_rows(self, name: &'static str, source: &'static str, shape: Shape, queries: bool) -> Kernel {
        let kernel = self.kernel(name, source, "COLS", shape.key_dim, 8);
        kernel.part(shader!("lib/delta_rule_stage.wgsl")).constant("QUERIES", queries)
    }

    fn columns_kernel(self, shape: Shape, remake: bool) -> Kernel {
        self.over_rows("delta_rule", shader!("delta_rule.wgsl"), shape, !remake).constant("REMAKE", remake)
    }

    fn backward_kernel(self, shape: Shape) -> Kernel {
        self.over_rows("delta_rule_backward", shader!("delta_rule_backward.wgsl"), shape, true)
    }

    fn rows_kernel(self, shape: Shape) -> Kernel {
        let kernel = self.kernel("delta_rule_rows", shader!("delta_rule_rows.wgsl"), "ROWS", shape.value_dim, 4);
        if self.staged { kernel.part(REDUCE).constant("WG_SIZE", self.side * self.parts) } else { kernel }
    }

    /// Products of a head's state and its gradient that the rows' kernel leaves apart: one a workgroup, or one a lane.
    fn anchors(self, shape: Shape) -> u32 {
        if self.staged { shape.key_dim.div_ceil(self.side) } else { round_up(shape.key_dim, self.side) }
    }
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
    let mut kernels = vec![factors_kernel(), qk_kernel(false), qk_kernel(true), decay_kernel()];
    for dim in [4, 20, 64, 128, 256] {
        let shape = Shape { key_heads: 1, value_heads: 1, key_dim: dim, value_dim: dim };
        for form in [false, true].map(Form::of) {
            let columns = [false, true].map(|remake| form.columns_kernel(shape, remake));
            kernels.extend(columns);
            kernels.extend([form.backward_kernel(shape), form.rows_kernel(shape)]);
        }
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
    fn params(&self, cpu: bool, out: Matrix) -> Params {
        let Self { shape, positions, qkv, a, b, a_log, dt_bias, factors } = *self;
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
        let (interval, chunks) = shape.intervals(rows);
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
            anchors: Form::of(cpu).anchors(shape),
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
}

/// `out`, `[rows, value_heads * value_dim]`. With a `state` of [`Shape::state_bytes`] all rows are of one sequence: they go on from it,
/// unless the first is at position 0, and leave it as it is behind the last one. Without one every sequence starts in the pass.
pub fn forward(rec: &mut Recorder, of: &Operands, state: Option<View>, out: Matrix) {
    let cpu = rec.capabilities.cpu;
    let (shape, form) = (of.shape, Form::of(cpu));
    assert!(state.is_none_or(|state| state.bytes >= shape.state_bytes()), "{state:?} for {shape:?}");
    let params = Params { carried: u32::from(state.is_some()), ..of.params(cpu, out) };
    of.factors(rec, "delta_rule", &params);
    let groups = rec.fold(u64::from(shape.value_heads) * u64::from(shape.value_dim.div_ceil(form.side)));
    let views = [of.qkv.view, of.qkv.view, of.factors.view, state.unwrap_or(rec.unused_write), out.view];
    rec.dispatch("delta_rule", form.columns_kernel(shape, false), &views, &params, groups, 4 * of.work());
}

/// The gradients of everything that [`forward`] reads but the positions. Every sequence starts in the pass.
pub fn backward(rec: &mut Recorder, of: &Operands, gradients: &Gradients) {
    const OP: &str = "delta_rule_backward";
    let Gradients { dout, scratch, dqkv, da, db, of_vectors } = *gradients;
    let cpu = rec.capabilities.cpu;
    let (shape, form) = (of.shape, Form::of(cpu));
    let params = of.params(cpu, dout);
    assert_alike(&[of.qkv, dqkv]);
    assert_alike(&[of.a, da, db]);
    assert!(scratch.bytes >= shape.scratch_bytes(params.rows), "{scratch:?} for {} rows of {shape:?}", params.rows);
    let mut begin = 0;
    let [differences, states, dqk, anchors, decays] = shape.scratch_parts(params.rows).map(|bytes| {
        let part = scratch.slice(begin, bytes);
        begin += bytes.next_multiple_of(VIEW_ALIGNMENT);
        part
    });
    let (qkv, factors) = (of.qkv.view, of.factors.view);
    of.factors(rec, OP, &params);
    let columns = rec.fold(u64::from(shape.value_heads) * u64::from(shape.value_dim.div_ceil(form.side)));
    let views = [qkv, qkv, factors, states, differences];
    rec.dispatch(OP, form.columns_kernel(shape, true), &views, &params, columns, 3 * of.work());
    let views = [qkv, factors, dout.view, states, dqkv.view];
    rec.dispatch(OP, form.backward_kernel(shape), &views, &params, columns, 4 * of.work());
    let tiles = u64::from(shape.key_dim.div_ceil(form.side));
    let groups = rec.fold(u64::from(params.chunks) * u64::from(shape.value_heads) * tiles);
    let views = [qkv, factors, dout.view, dqkv.view, differences, states, dqk, anchors];
    rec.dispatch(OP, form.rows_kernel(shape), &views, &params, groups, 8 * of.work());
    let cells = u64::from(params.rows) * u64::from(shape.key_heads);
    let groups = rec.fold(cells);
    let views = [qkv, factors, differences, dqk, decays, dqkv.view, db.view];
    let work = 4 * u64::from(params.rows) * u64::from(shape.qkv_cols());
    rec.dispatch(OP, qk_kernel(cpu), &views, &params, groups, work);
    let groups = rec.fold((u64::from(params.chunks) * u64::from(shape.value_heads)).div_ceil(u64::from(WG_SIZE)));
    let views = [of.a.view, of.a_log, of.dt_bias, factors, anchors, decays, da.view];
    let work = u64::from(params.rows) * u64::from(shape.value_heads);
    rec.dispatch(OP, decay_kernel(), &views, &params, groups, work);
    if let Some([of_a_log, of_dt_bias]) = of_vectors {
        column_gradient::bias(rec, Matrix { view: decays, ..da }, of_a_log);
        column_gradient::bias(rec, da, of_dt_bias);
    }
}
