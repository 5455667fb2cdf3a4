//! Shader parts that several kernels are joined with.

/// `mask_tail`, which keeps padding out of sums.
pub(crate) const MASK_TAIL: &str = include_str!("../../shaders/lib/mask_tail.wgsl");
/// Sums and maxima over a workgroup.
pub(crate) const REDUCE: &str = include_str!("../../shaders/lib/reduce.wgsl");
