//! `model.safetensors.index.json` beside good shards.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::model::config::ModelConfig;
use loraine::model::source::check_shapes;
use loraine::model::tensor_source::TensorSource;
use loraine_fuzz::{Place, fixture, model};

static PLACE: LazyLock<(Place, ModelConfig)> = LazyLock::new(|| {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let place = Place::with(&shards.map(|shard| fixture("llama_untied").join(shard)));
    (place, model("llama_untied"))
});

fuzz_target!(|bytes: &[u8]| {
    let (place, config) = &*PLACE;
    place.write("model.safetensors.index.json", bytes);
    if let Ok(source) = TensorSource::open(place.path()) {
        let _ = check_shapes(&source, config);
    }
});
