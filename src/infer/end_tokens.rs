//! The tokens that end a generated text.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::companions;
use crate::model::config::ModelConfig;
use crate::model::json_fields::parse_object;
use crate::{Result, files};

const FILE: &str = "generation_config.json";

/// Returns the end tokens of `config.json` and of `generation_config.json`, if the directory has one. Its `eos_token_id` is one id or
/// a list of ids; any other value is ignored.
///
/// # Errors
/// `generation_config.json` cannot be read or is not a JSON object.
pub fn from_dir(model_dir: &Path, config: &ModelConfig) -> Result<Vec<u32>> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend(listed(model_dir)?);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The end tokens of `generation_config.json`, if the directory has one.
///
/// # Errors
/// The file cannot be read or is not a JSON object.
pub fn listed(dir: &Path) -> Result<Vec<u32>> {
    Ok(ids(read(&dir.join(FILE))?.get("eos_token_id")))
}

/// Writes the end tokens of the model at `from` and `ends` into `generation_config.json` of `dir`, if some of `ends` are new.
///
/// # Errors
/// A file that cannot be read or written.
pub fn add(dir: &Path, from: &Path, ends: &[u32]) -> Result<()> {
    let config_path = from.join("config.json");
    let mut settings = read(&dir.join(FILE))?;
    if settings.is_empty() {
        settings = read(&from.join(FILE))?;
    }
    let mut known = ids(settings.get("eos_token_id"));
    if known.is_empty() {
        known = ids(read(&config_path)?.get("eos_token_id"));
    }
    let before = known.len();
    ends.iter().for_each(|end| {
        if !known.contains(end) {
            known.push(*end)
        }
    });
    if known.len() == before {
        return Ok(());
    }
    settings.insert("eos_token_id".to_owned(), known.into());
    files::write_atomically(&dir.join(FILE), format!("{:#}\n", Value::Object(settings)).as_bytes())
}

/// A JSON object from a file; empty where there is no file.
fn read(path: &Path) -> Result<Map<String, Value>> {
    if !companions::is_file(path) {
        return Ok(Map::new());
    }
    parse_object(path, &companions::text(path)?)
}

/// One id or a list of ids.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let list = match value {
        Some(Value::Array(list)) => list.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    list.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect()
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
