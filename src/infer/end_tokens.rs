//! The tokens that end a generated text.

use std::path::Path;

use serde_json::Value;

use crate::model::config::ModelConfig;
use crate::model::json_fields::parse_object;
use crate::{Error, Result, files};

const FILE: &str = "generation_config.json";

/// Returns the end tokens of `config.json` and of `generation_config.json`, if the directory has one. Its `eos_token_id` is one id or
/// a list of ids; any other value is ignored.
///
/// # Errors
/// `generation_config.json` cannot be read or is not a JSON object.
pub fn from_dir(model_dir: &Path, config: &ModelConfig) -> Result<Vec<u32>> {
    let mut ids = config.eos_token_ids.clone();
    let path = model_dir.join(FILE);
    if files::is_file(&path) {
        let text = files::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
        let listed = match parse_object(&path, &text)?.remove("eos_token_id") {
            Some(Value::Array(list)) => list,
            other => other.into_iter().collect(),
        };
        ids.extend(listed.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ids_come_from_both_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::lora::targets::tests::model();
        config.eos_token_ids = vec![7];
        assert_eq!(from_dir(dir.path(), &config).unwrap(), [7]);
        let cases: [(&str, &[u32]); 5] = [
            (r#"{"eos_token_id": 3}"#, &[3, 7]),
            (r#"{"eos_token_id": [9, 7, 1]}"#, &[1, 7, 9]),
            (r#"{"eos_token_id": null}"#, &[7]),
            (r#"{"eos_token_id": ["x", -1, 4294967296, 5]}"#, &[5, 7]),
            (r#"{"do_sample": false}"#, &[7]),
        ];
        for (text, want) in cases {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(from_dir(dir.path(), &config).unwrap(), want, "{text}");
        }
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = from_dir(dir.path(), &config).unwrap_err().to_string();
        assert!(error.contains("generation_config.json") && error.contains("not valid JSON"), "{error}");
    }
}
