//! Low-rank adapters in PEFT's format: their settings, which layers they touch, their tensors on disk.

pub mod adapter_file;
pub mod config;
pub mod factor;
pub mod factors;
pub mod lesson;
pub mod targets;
