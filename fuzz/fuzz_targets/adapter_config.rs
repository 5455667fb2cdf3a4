//! `adapter_config.json`, and which of a model's layers it adapts.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::lora::config::LoraConfig;
use loraine::lora::targets::resolve;
use loraine::model::config::ModelConfig;
use loraine_fuzz::model;

static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| model("llama_tied"));

fuzz_target!(|text: &str| {
    if let Ok(config) = LoraConfig::from_json(Path::new("adapter_config.json"), text) {
        let _ = resolve(&config, &MODEL);
        // What is read can be written and is read as the same.
        let again = LoraConfig::from_json(Path::new("again.json"), &config.to_json());
        assert_eq!(again.expect("its own text").to_json(), config.to_json());
    }
});
