//! The only module that names wgpu: adapters, planned memory, kernels and their pipelines, recorded lists and their execution.

mod arena;
mod autotune;
mod commands;
mod device;
mod error;
mod execute;
mod harness;
mod kernel;
mod lists;
mod memory;
mod params;
mod profile;
#[cfg(target_arch = "wasm32")]
mod shader_texts;

pub use arena::{Arena, Lifetime};
pub use autotune::{AutotuneKey, AutotuneTable, ProblemSize, Tune, TuneOptions};
pub use commands::{Capabilities, Command, Cooperative, Dispatch, PARAMS_STRIDE, Recorder, Scratch, params_bytes};
pub use device::{AdapterSummary, Gpu, GpuOptions, LossWatch, MatrixUnits, adapters, preferred};
pub use error::GpuError;
pub use execute::{Buffers, PendingRead, Prepared};
pub use harness::{Harness, PreparedHarness};
pub use kernel::{Access, Constant, Kernel};
pub use lists::Lists;
pub use memory::{BufferId, BufferSpec, Category, Ledger, Matrix, MemoryPlan, VIEW_ALIGNMENT, View};
pub use memory::{readable_bytes, readable_need, round_up};
pub(crate) use params::params;
pub use params::{Field, Layout, Param, ParamType};
pub use profile::{OperationShare, Profile};
