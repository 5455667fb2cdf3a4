//! The numbers of the page's lesson.

use std::path::Path;

use wasm_bindgen::prelude::*;

use super::report::PlanReport;
use super::{errors, to_js};
use crate::Result;
use crate::lora::lesson;
use crate::memory::methods::methods;
use crate::model::config::ModelConfig;

/// Quantizes block number `block` of a matrix of the model to NF4; without a name, of its first matrix.
#[wasm_bindgen(js_name = weightBlock, unchecked_return_type = "WeightBlock")]
pub fn weight_block(model: &str, matrix: Option<String>, block: usize) -> Result<JsValue, JsValue> {
    to_js(&lesson::weight_block(Path::new(model), matrix.as_deref(), block).map_err(|e| errors::to_js(&e))?)
}

/// Computes what the PEFT adapter in the directory `adapter` adds to the outputs of one of its modules, for the embedding of `token`, and
/// the singular values of the update.
#[wasm_bindgen(js_name = moduleUpdate, unchecked_return_type = "ModuleUpdate")]
pub fn module_update(model: &str, adapter: &str, module: usize, token: usize) -> Result<JsValue, JsValue> {
    let update = lesson::module_update(Path::new(model), Path::new(adapter), module, token);
    to_js(&update.map_err(|e| errors::to_js(&e))?)
}

/// Estimates full training, LoRA and QLoRA, in this order, of the model whose `config.json` is in the directory `model`: one sequence of
/// 512 tokens, and rank 16.
#[wasm_bindgen(js_name = methodMemory, unchecked_return_type = "PlanReport[]")]
pub fn method_memory(model: &str) -> Result<JsValue, JsValue> {
    let estimates = ModelConfig::from_dir(Path::new(model)).and_then(|config| methods(&config));
    let estimates = estimates.map_err(|e| errors::to_js(&e))?;
    to_js(&estimates.each_ref().map(PlanReport::of_estimate))
}
