//! Training: the plan of a run, the step on the device, and the run around it.

pub mod budget;
pub mod checkpoint;
mod comparisons;
pub mod diagnosis;
#[cfg(not(target_arch = "wasm32"))]
pub mod distill;
pub mod engine;
pub mod evaluate;
pub mod event;
pub mod group;
pub mod head;
mod joining;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod objective;
mod observer;
pub mod optimizer;
pub mod output;
pub mod parameters;
pub mod plan;
pub mod plot;
pub mod preference;
pub mod prepare;
pub mod provenance;
pub mod run;
pub mod schedule;
mod setting_spec;
pub mod settings;
mod teacher;
pub mod tensorboard;
#[cfg(not(target_arch = "wasm32"))]
pub mod threads;
pub mod values;
pub mod worker;
