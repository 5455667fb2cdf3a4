//! The only room that names wgpu: adapters, planned memory, kernels and their pipelines, recorded lists and their execution.

mod arena;
mod bed;
mod choices;
mod commands;
mod device;
mod error;
mod execute;
mod kernel;
mod memory;

pub use arena::{Arena, Lifetime};
pub use bed::{Bed, Measured};
pub use choices::{Choices, Problem, ShapeClass, Tune, TuneOptions};
pub use commands::{Command, Cooperative, Dispatch, PARAMS_STRIDE, Recorder, Scratch, Target, params_bytes};
pub use device::{AdapterSummary, Gpu, GpuOptions, MatrixUnits, adapters, preferred};
pub use error::GpuError;
pub use execute::{Buffers, PendingRead, Prepared, Profile};
pub use kernel::{Access, Constant, Kernel};
pub use memory::{BufferId, BufferSpec, Category, Ledger, Matrix, MemoryPlan, VIEW_ALIGNMENT, View, round_up};
