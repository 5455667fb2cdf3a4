//! The texts of the shaders in a browser's module, which holds them compressed. `shader!` gives their names there.

use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;

const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shaders.gz"));

static TEXTS: OnceLock<HashMap<&str, &str>> = OnceLock::new();

/// The text of a shader, by what `shader!` gives. Another text, such as a generated table, is itself.
pub(super) fn text_of(name: &'static str) -> &'static str {
    let texts = TEXTS.get_or_init(|| {
        let mut all = String::new();
        GzDecoder::new(PACKED).read_to_string(&mut all).expect("the build has packed the shaders");
        // They are needed for as long as the page is open.
        let mut words = String::leak(all).split('\0');
        std::iter::from_fn(|| words.next().zip(words.next())).collect()
    });
    texts.get(name).copied().unwrap_or(name)
}
