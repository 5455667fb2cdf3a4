//! Records as `.jsonl`, `.json` and `.csv`, through shapes, chat template, masks, length policy and packing.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use loraine::data::read::read_with;
use loraine::data::settings::{DataSettings, OnBad, OnLong};
use loraine::data::tokenizer::Tokenizer;
use loraine_fuzz::{Place, demo_model};

static PLACE: LazyLock<(Place, Tokenizer)> =
    LazyLock::new(|| (Place::new(), Tokenizer::from_tokenizer_dir(&demo_model()).expect("a good tokenizer")));

fuzz_target!(|bytes: &[u8]| {
    let (place, tokenizer) = &*PLACE;
    for (name, on_long) in [("data.jsonl", OnLong::Split), ("data.json", OnLong::Truncate), ("data.csv", OnLong::Drop)] {
        let path = place.write(name, bytes);
        let settings = DataSettings { max_seq_len: 16, on_long, on_bad: OnBad::Drop, packing: true, ..DataSettings::default() };
        let Ok(data) = read_with(&path, Some(tokenizer), &settings, tokenizer.vocabulary()) else { continue };
        for example in &data.examples {
            assert!(example.input_ids.len() <= 16 && example.trained_tokens() > 0);
            assert!(example.input_ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()));
        }
    }
});
