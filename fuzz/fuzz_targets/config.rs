//! `config.json` of a model, up to the list of its tensors.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use loraine::model::config::ModelConfig;

fuzz_target!(|text: &str| {
    let _ = ModelConfig::from_json(Path::new("config.json"), text);
});
