//! The integration tests, in one program: each program that links wgpu, tokenizers and parquet takes seconds to link.
//! `cargo test --test it parity::` runs the tests of one file.

#![expect(clippy::unwrap_used, reason = "a test ends at what is not as expected")]
#![expect(unreachable_pub, reason = "nobody uses a program from outside")]

mod attacks;
mod common;

mod adapter_variants;
mod answers;
mod architecture;
mod bad_input;
mod best_and_resume;
mod chat_data;
mod cli_tools;
mod cli_train;
mod convolutions;
mod damaged_files;
mod data_files;
mod demo_and_chat;
#[cfg(unix)]
mod distillation;
mod eight_bit_moments;
mod experts;
mod exports;
#[cfg(target_os = "linux")]
mod faults;
mod foreign_templates;
mod full_training;
mod gemma4;
mod generate;
mod gguf;
#[cfg(unix)]
mod group;
mod hostile_files;
mod hub;
mod hub_data;
#[cfg(unix)]
mod interruption;
mod invariants;
mod linear_attention;
mod lion;
mod long_run;
mod lossy;
mod memory;
mod model_directories;
#[cfg(target_os = "linux")]
mod mutated_inputs;
mod new_tokens;
#[cfg(unix)]
mod next_command;
mod parity;
#[cfg(unix)]
mod preferences;
mod progress;
mod project;
mod quant_parity;
mod quantized_cache;
mod readme;
mod ruined_runs;
mod saved_adapter;
#[cfg(feature = "serve")]
mod serve;
mod shaders;
#[cfg(unix)]
mod terminal;
mod text_format;
mod tokenizers;
mod trainer;
mod tuning;
