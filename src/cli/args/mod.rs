//! Flags that several subcommands share.

pub mod adapter;
pub mod base;
pub mod cache;
pub mod data;
pub mod device;
pub mod gpu;
pub mod memory;
pub mod model;
pub mod nearest;
pub mod objective;
pub mod session;
pub mod tune;
