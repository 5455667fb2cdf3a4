//! Records of a Parquet file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::read::read;
use loraine::data::tokenizer::Tokenizer;
use loraine_fuzz::{Place, demo_model, let_readers_catch_panics};

static PLACE: LazyLock<(Place, Tokenizer)> = LazyLock::new(|| {
    let_readers_catch_panics();
    (Place::new(), Tokenizer::from_tokenizer_dir(&demo_model()).expect("a good tokenizer"))
});

fuzz_target!(|bytes: &[u8]| {
    let (place, tokenizer) = &*PLACE;
    let path = place.write("data.parquet", bytes);
    let _ = read(&path, Some(tokenizer), 64, tokenizer.vocabulary());
});
