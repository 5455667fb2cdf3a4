//! The common part of elementwise operations: one invocation per four consecutive columns of a row.

use crate::gpu::{Kernel, Matrix, Param, Recorder, params};

pub(super) const WG_SIZE: u32 = 64;

params! {
    /// The parameters of the kernels that need only the shape.
    pub(super) struct Params {
        rows: u32,
        cols: u32,
        ld: u32,
    }
}

/// A kernel whose invocations find their columns by `quad_of`.
pub(super) fn kernel<P: Param>(name: &'static str, source: &'static str) -> Kernel {
    Kernel::new::<P>(name, source).part(shader!("lib/quads.wgsl")).constant("WG_SIZE", WG_SIZE)
}

pub(super) fn params(x: Matrix) -> Params {
    Params { rows: x.rows, cols: x.cols, ld: x.ld }
}

/// The workgroups that cover all columns of `x`.
pub(super) fn workgroups(rec: &Recorder, x: Matrix) -> [u32; 3] {
    let quads = u64::from(x.rows) * u64::from(x.cols.div_ceil(4));
    rec.fold(quads.div_ceil(u64::from(WG_SIZE)))
}

pub(super) fn elements(x: Matrix) -> u64 {
    u64::from(x.rows) * u64::from(x.cols)
}

pub(super) fn assert_alike(matrices: &[Matrix]) {
    let shape = |m: &Matrix| (m.rows, m.cols, m.ld);
    assert!(matrices.windows(2).all(|m| shape(&m[0]) == shape(&m[1])), "matrices of unlike shape: {matrices:?}");
}
