//! Shader parts that several kernels are joined with.

/// `mask_tail`, which keeps padding out of sums.
pub(crate) const MASK_TAIL: &str = shader!("lib/mask_tail.wgsl");
/// Sums and maxima over a workgroup.
pub(crate) const REDUCE: &str = shader!("lib/reduce.wgsl");
