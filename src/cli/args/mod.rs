//! Flags that several subcommands share.

pub mod base;
pub mod cache;
pub mod data;
pub mod gpu;
pub mod memory;
pub mod model;
pub mod tune;
