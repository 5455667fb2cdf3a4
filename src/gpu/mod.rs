//! The only room that names wgpu.

mod error;

pub use error::GpuError;
