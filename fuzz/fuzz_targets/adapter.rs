//! `adapter_model.safetensors` beside a good `adapter_config.json`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::lora::adapter_file;
use loraine::model::config::ModelConfig;
use loraine_fuzz::{Place, fixture, model};

static PLACE: LazyLock<(Place, ModelConfig)> =
    LazyLock::new(|| (Place::with(&[fixture("llama_tied/adapter/adapter_config.json")]), model("llama_tied")));

fuzz_target!(|bytes: &[u8]| {
    let (place, config) = &*PLACE;
    place.write("adapter_model.safetensors", bytes);
    if let Ok(adapter) = adapter_file::load(place.path(), config) {
        assert_eq!(adapter.modules.len(), adapter.tensors.modules.len());
        assert!(adapter.tensors.values().flatten().all(|value| value.is_finite()));
    }
});
