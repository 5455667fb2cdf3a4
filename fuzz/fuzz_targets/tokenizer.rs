//! `tokenizer.json`, and texts through whatever tokenizer comes of it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::tokenizer::Tokenizer;
use loraine_fuzz::{Place, let_readers_catch_panics};

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let_readers_catch_panics();
    Place::new()
});

fuzz_target!(|bytes: &[u8]| {
    PLACE.write("tokenizer.json", bytes);
    let Ok(tokenizer) = Tokenizer::from_tokenizer_dir(PLACE.path()) else { return };
    for text in ["", "Once upon a time, caf\u{e9} 12 \u{1f600}\n", "<s>  x</s>"] {
        if let Ok((ids, ranges)) = tokenizer.encode_with_ranges(text, true) {
            assert!(ranges.iter().all(|range| text.get(range.clone()).is_some()), "a range cuts a character");
            let _ = tokenizer.decode(&ids);
        }
    }
});
