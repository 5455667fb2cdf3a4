//! The files beside a model's weights: those of its directory, or what the keys of its GGUF file say in their place. Of `model.gguf`
//! there are so `model.gguf/config.json`, `model.gguf/tokenizer.json` and the others that transformers would have.

use std::path::Path;

use serde_json::{Value, json};

use super::gguf_file::GgufFile;
pub use super::gguf_file::is_gguf;
use super::{gguf_config, gguf_tokenizer};
use crate::{Error, Result, files};

/// Name of the configuration's file.
pub const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// The GGUF file and the name of a file that its keys stand for; None for a path of another kind.
fn inside(path: &Path) -> Option<(&Path, &str)> {
    let (dir, name) = (path.parent()?, path.file_name()?.to_str()?);
    is_gguf(dir).then_some((dir, name))
}

/// True if there is a file, or if the keys of a GGUF file stand for it.
pub fn is_file(path: &Path) -> bool {
    match inside(path) {
        None => files::is_file(path),
        Some((_, CONFIG)) => true,
        Some((gguf, TOKENIZER | TOKENIZER_CONFIG | GENERATION_CONFIG)) => {
            // A damaged file counts as whole, so that reading it says what is wrong.
            GgufFile::open(gguf).map_or(true, |file| gguf_tokenizer::is_there(&file))
        }
        Some(_) => false,
    }
}

/// Reads a file, or writes down what the keys of a GGUF file say.
///
/// # Errors
/// A file that cannot be read, or keys that are damaged or not supported.
pub fn text(path: &Path) -> Result<String> {
    let unreadable = |e: std::io::Error| Error::file(path, format!("cannot be read: {e}"));
    let Some((gguf, name)) = inside(path) else { return files::read_to_string(path).map_err(unreadable) };
    let file = GgufFile::open(gguf)?;
    let object = match name {
        CONFIG => gguf_config::config_object(&file)?,
        TOKENIZER => return gguf_tokenizer::tokenizer_json(&file),
        TOKENIZER_CONFIG => gguf_tokenizer::tokenizer_config(&file)?,
        GENERATION_CONFIG => {
            serde_json::Map::from_iter([("eos_token_id".to_owned(), json!(gguf_tokenizer::end_tokens(&file)?))])
        }
        _ => return Err(unreadable(std::io::ErrorKind::NotFound.into())),
    };
    Ok(format!("{:#}\n", Value::Object(object)))
}

/// As [`text`], as bytes of any kind.
///
/// # Errors
/// As [`text`].
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    match inside(path) {
        None => files::read(path).map_err(|e| Error::file(path, format!("cannot be read: {e}"))),
        Some(_) => text(path).map(String::into_bytes),
    }
}
