//! Shader parts that several kernels are joined with.

pub const KEEP: &str = include_str!("../../shaders/lib/keep.wgsl");
pub const REDUCE: &str = include_str!("../../shaders/lib/reduce.wgsl");
