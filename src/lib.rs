//! loraine fine-tunes decoder-only language models (LoRA, QLoRA) with WGSL compute shaders on wgpu: no Python, no CUDA.
//!
//! [`data`] makes examples and micro-batches, [`model`] and [`lora`] say what the network is, [`train`] plans a run's memory and makes
//! its steps, [`ops`] are the operations that a step is recorded from, and [`gpu`] runs what was recorded. Plans and lists are plain
//! data, so everything that can be known without a device is.
//!
//! The memory that QLoRA on a model of 8 billion parameters takes, without a GPU and before anything is downloaded:
//!
//! ```
//! use loraine::memory::{ASSUMED_CAPABILITIES, estimate};
//! use loraine::model::shapes;
//! use loraine::quant::format::Float;
//! use loraine::train::settings::RunSettings;
//!
//! let model = shapes::by_name("llama-3.1-8b")?;
//! let settings = RunSettings { batch_size: 1, ..RunSettings::default() };
//! let run = estimate(&settings, &model, Float::Bf16, 1024, ASSUMED_CAPABILITIES)?;
//! assert_eq!(run.trained_parameters, 41_943_040);
//! assert!(run.total < 8_000_000_000, "{} bytes", run.total);
//! # Ok::<(), loraine::Error>(())
//! ```
//!
//! A run from the data to the adapter:
//!
//! ```no_run
//! use loraine::gpu::{Gpu, GpuOptions};
//! use loraine::train::event::to_the_end;
//! use loraine::train::prepare::prepare;
//! use loraine::train::run::{Start, run};
//! use loraine::train::settings::RunSettings;
//!
//! let settings = RunSettings {
//!     model: "models/SmolLM2-135M".into(),
//!     data: "notes.txt".into(),
//!     out: "run".into(),
//!     ..RunSettings::default()
//! };
//! let prepared = prepare(settings)?;
//! let gpu = pollster::block_on(Gpu::open(&GpuOptions::default()))?;
//! pollster::block_on(run(prepared, gpu, &Start::default(), to_the_end, |event| println!("{event:?}")))?;
//! # Ok::<(), loraine::Error>(())
//! ```

/// The text of a file under `shaders/`; in a browser's module its name, by which a kernel finds it. See `build.rs`.
macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/shaders/", $name))
    };
}

pub mod bench;
pub mod data;
pub mod demo;
#[cfg(not(target_arch = "wasm32"))]
pub mod doctor;
mod error;
pub mod export;
pub mod files;
pub mod gpu;
pub mod hub;
pub mod infer;
pub mod lora;
pub mod memory;
pub mod model;
pub mod network;
pub mod ops;
pub mod panics;
pub mod quant;
pub mod random;
#[cfg(not(target_arch = "wasm32"))]
pub mod serve;
pub mod setting;
pub mod train;
pub mod tune;
#[cfg(target_arch = "wasm32")]
#[expect(unreachable_pub, reason = "wasm-bindgen exports public items of private modules to the page")]
pub mod web;

pub use error::{Error, ErrorKind, Result};
