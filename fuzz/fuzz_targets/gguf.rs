//! A GGUF file: its keys, its tensors' places and blocks, its tokenizer and chat template.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::template::ChatTemplate;
use loraine::data::tokenizer::Tokenizer;
use loraine::model::source::Source;
use loraine::model::tensors::{TensorSpec, tensors};
use loraine_fuzz::{Place, let_readers_catch_panics};

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let_readers_catch_panics();
    Place::new()
});

fuzz_target!(|bytes: &[u8]| {
    let path = PLACE.write("model.gguf", bytes);
    if let Ok(source) = Source::open(&path) {
        for TensorSpec { name, .. } in tensors(&source.config) {
            if let Some(tensor) = source.tensors.get(&name) {
                let _ = tensor.read_f32();
            }
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_tokenizer_dir(&path) {
        let _ = tokenizer.encode("Once upon a time", true);
        if let Ok(special) = tokenizer.special_tokens() {
            let _ = ChatTemplate::load(&path, None, special);
        }
    }
});
