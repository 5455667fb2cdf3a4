//! Shader parts that several kernels are joined with.

pub(crate) const MASK_TAIL: &str = include_str!("../../shaders/lib/mask_tail.wgsl");
pub(crate) const REDUCE: &str = include_str!("../../shaders/lib/reduce.wgsl");
