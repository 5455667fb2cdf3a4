//! What can go wrong on the device, each with what to do about it.

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
        "out of GPU memory while allocating {bytes} bytes for {what}: lower --batch-size or --max-seq-len, or choose --recompute all"
    )]
    OutOfMemory { bytes: u64, what: String },
    #[error(
        "{what} needs {needed} bytes in one {limit}, the adapter allows {allowed}: lower --batch-size or --max-seq-len"
    )]
    LimitTooSmall { what: String, limit: &'static str, needed: u64, allowed: u64 },
    #[error(
        "the GPU device was lost ({0}): save what you can and start again; a driver time-out or an unplugged device does this"
    )]
    Lost(String),
    #[error("the GPU reported an error: {0}")]
    Validation(String),
}
