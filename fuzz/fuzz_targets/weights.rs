//! `model.safetensors`: its header, its tensors' places, its numbers.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::model::config::ModelConfig;
use loraine::model::source::check_shapes;
use loraine::model::tensor_source::TensorSource;
use loraine::model::tensors::{TensorSpec, tensors};
use loraine_fuzz::{Place, model};

static PLACE: LazyLock<(Place, ModelConfig)> = LazyLock::new(|| (Place::new(), model("llama_tied")));

fuzz_target!(|bytes: &[u8]| {
    let (place, config) = &*PLACE;
    place.write("model.safetensors", bytes);
    let Ok(source) = TensorSource::open(place.path()) else { return };
    let _ = check_shapes(&source, config);
    for TensorSpec { name, .. } in tensors(config) {
        if let Some(tensor) = source.get(&name) {
            let _ = tensor.read_f32();
        }
    }
});
