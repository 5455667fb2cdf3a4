//! Errors of the device, each with what to do about it.

use crate::setting::{BATCH_SIZE, MAX_SEQ_LEN, RECOMPUTE};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    #[error(
        "no GPU adapter was found: install a Vulkan, Metal or DX12 driver (a machine without a GPU can use Mesa's software driver: `apt install mesa-vulkan-drivers`)"
    )]
    NoAdapter,
    #[error("no adapter matches `{wanted}`; there are: {available}")]
    UnknownAdapter { wanted: String, available: String },
    #[error("the device of `{adapter}` could not be opened: {problem}")]
    Open { adapter: String, problem: String },
    #[error(
        "out of GPU memory while allocating {bytes} bytes for {what}: lower {} or {}, or choose {}",
        BATCH_SIZE,
        MAX_SEQ_LEN,
        RECOMPUTE.is("all")
    )]
    OutOfMemory { bytes: u64, what: String },
    #[error(
        "{what} needs {needed} bytes in one {limit}, the adapter allows {allowed}: lower {} or {}",
        BATCH_SIZE,
        MAX_SEQ_LEN
    )]
    LimitTooSmall { what: String, limit: &'static str, needed: u64, allowed: u64 },
    #[error(
        "the GPU device was lost ({0}): save what you can and start again; a driver time-out or an unplugged device does this"
    )]
    Lost(String),
    #[error("the GPU reported an error: {0}")]
    Validation(String),
}
