//! `tokenizer_config.json` beside a good tokenizer: special tokens and the chat template in it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::template::ChatTemplate;
use loraine::data::tokenizer::Tokenizer;
use loraine_fuzz::{Place, demo_model};

static PLACE: LazyLock<Place> = LazyLock::new(|| Place::with(&[demo_model().join("tokenizer.json")]));

fuzz_target!(|bytes: &[u8]| {
    PLACE.write("tokenizer_config.json", bytes);
    let Ok(tokenizer) = Tokenizer::from_tokenizer_dir(PLACE.path()) else { return };
    let Ok(special) = tokenizer.special_tokens() else { return };
    if let Ok(Some(template)) = ChatTemplate::load(PLACE.path(), None, special) {
        let _ = template.render(&[], None, true);
    }
});
