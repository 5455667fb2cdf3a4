//! A checkpoint's `state.json` and `optimizer.safetensors`; the first byte says which, and how the moments are kept.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::lora::adapter_file::{self, LoadedAdapter};
use loraine::lora::config::LoraConfig;
use loraine::lora::targets::LoraModule;
use loraine::model::config::ModelConfig;
use loraine::model::tensor_source::TensorSource;
use loraine::network::moments::MomentStorage;
use loraine::train::checkpoint::{self, RunState, Trainable};
use loraine::train::objective::Report;
use loraine::train::provenance::Provenance;
use loraine::train::settings::RunSettings;
use loraine_fuzz::{Place, fixture, model};

struct Run {
    place: Place,
    model: ModelConfig,
    config: LoraConfig,
    modules: Vec<LoraModule>,
    state: Vec<u8>,
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let place = Place::with(&files.map(|file| fixture("llama_tied/adapter").join(file)));
    let model = model("llama_tied");
    let LoadedAdapter { config, modules, .. } = adapter_file::load(place.path(), &model).expect("a good adapter");
    let base = TensorSource::empty(place.path());
    let origin = Provenance::new(&RunSettings::default(), &[], &[], &base, 9).expect("no file to read");
    let unlogged = vec![Report { loss: 2.5, ..Report::default() }];
    let state = serde_json::to_vec(&RunState { step: 3, tokens: 70, unlogged, best: None, origin }).expect("JSON");
    Run { place, model, config, modules, state }
});

fuzz_target!(|bytes: &[u8]| {
    let Run { place, model, config, modules, state } = &*RUN;
    let Some((which, bytes)) = bytes.split_first() else { return };
    if which % 2 == 0 {
        place.write("state.json", bytes);
    } else {
        place.write("state.json", state);
        place.write("optimizer.safetensors", bytes);
    }
    let moments = if which & 2 == 0 { MomentStorage::F32 } else { MomentStorage::EightBit };
    let _ = checkpoint::load(place.path(), model, Trainable::Adapter { config, modules }, moments);
});
