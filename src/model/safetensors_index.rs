//! Hugging Face's safetensors directories: one file, or shards that an index lists.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::foreign::other_weights;
use super::json_fields::parse_object;
use super::listing::Listing;
use super::safetensors_file::{self, MAX_HEADER_BYTES};
use crate::{Error, Result, files};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Lists `model.safetensors`, or else the shards that `model.safetensors.index.json` names; checks every header.
pub(super) fn list(dir: &Path) -> Result<Listing> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    if files::is_file(&single) {
        return Ok(Listing { entries: safetensors_file::read_header(&single)?, path: single });
    }
    if !files::is_file(&index) {
        return list_shards(dir, &shards_without_index(dir)?);
    }
    let mut shards = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for (tensor, shard) in weight_map(&index)? {
        if !shards.contains_key(&shard) {
            shards.insert(shard.clone(), safetensors_file::read_header(&dir.join(&shard))?);
        }
        let entry = shards.get(&shard).and_then(|entries| entries.get(&tensor)).cloned();
        let entry = entry.ok_or_else(|| Error::field(&index, &tensor, format!("is not in `{shard}`")))?;
        entries.insert(tensor, entry);
    }
    Ok(Listing { path: index, entries })
}

/// The shards `model-00001-of-00003.safetensors` and so on of a directory that has lost its index.
fn shards_without_index(dir: &Path) -> Result<Vec<String>> {
    let names = files::names(dir).unwrap_or_default();
    let total = names.iter().find_map(|name| shard_number(name)).map_or(0, |(_, total)| total);
    let mut shards: Vec<(usize, String)> =
        names.into_iter().filter_map(|name| Some((shard_number(&name)?.0, name))).collect();
    shards.sort();
    let whole = shards.iter().map(|(number, _)| *number).eq(1..=total)
        && shards.iter().all(|(_, name)| shard_number(name).is_some_and(|(_, of)| of == total));
    match total {
        0 => Err(Error::file(dir, format!("holds neither {SINGLE} nor {INDEX}{}", other_weights(dir)))),
        _ if whole => Ok(shards.into_iter().map(|(_, name)| name).collect()),
        _ => {
            let found: Vec<String> = shards.into_iter().map(|(_, name)| name).collect();
            let problem = format!("holds no {INDEX}, and of the shards only {}", found.join(", "));
            Err(Error::file(dir, format!("{problem}; there must be all of one set")))
        }
    }
}

/// The number of a shard and that of all shards.
fn shard_number(name: &str) -> Option<(usize, usize)> {
    let (number, total) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    Some((number.parse().ok()?, total.parse().ok()?))
}

/// Lists all tensors of some files in `dir`.
fn list_shards(dir: &Path, shards: &[String]) -> Result<Listing> {
    let mut entries = BTreeMap::new();
    for shard in shards {
        let path = dir.join(shard);
        for (tensor, entry) in safetensors_file::read_header(&path)? {
            if entries.insert(tensor.clone(), entry).is_some() {
                return Err(Error::field(&path, tensor, "is in an earlier shard too"));
            }
        }
    }
    Ok(Listing { entries, path: dir.to_owned() })
}

/// The pairs (tensor, shard file) of an index. A shard must lie in the index's own directory.
fn weight_map(index: &Path) -> Result<Vec<(String, String)>> {
    let unreadable = |e: std::io::Error| Error::file(index, format!("cannot be read: {e}"));
    if files::len(index).map_err(unreadable)? > MAX_HEADER_BYTES {
        return Err(Error::file(index, format!("is larger than {MAX_HEADER_BYTES} bytes; it is not an index")));
    }
    let object = parse_object(index, &files::read_to_string(index).map_err(unreadable)?)?;
    let map = object.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::field(index, "weight_map", "is missing; it must map tensors to file names"))?;
    map.iter()
        .map(|(tensor, shard)| match shard.as_str().filter(|s| is_plain_file_name(s)) {
            Some(shard) => Ok((tensor.clone(), shard.to_owned())),
            None => {
                let problem = format!("names the file {shard}, but must name a .safetensors file beside the index");
                Err(Error::field(index, tensor, problem))
            }
        })
        .collect()
}

fn is_plain_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::safetensors_file::tests::file_bytes;
    use crate::model::tensor_source::TensorSource;

    const ONE: &str = r#"{"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;

    fn index_error(weight_map: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.safetensors"), file_bytes(ONE, 8)).unwrap();
        fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {weight_map}}}"#)).unwrap();
        TensorSource::open(dir.path()).expect_err(weight_map).to_string()
    }

    #[test]
    fn shards_outside_the_directory_are_refused() {
        for name in
            ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "b\\\\a.safetensors", "..", "C:a.safetensors"]
        {
            let message = index_error(&format!(r#"{{"w": "{name}"}}"#));
            assert!(message.contains("`w`: names the file") && message.contains("beside the index"), "{message}");
        }
        assert!(index_error(r#"{"w": 3}"#).contains("`w`: names the file"));
        assert!(index_error(r#"{"v": "a.safetensors"}"#).contains("`v`: is not in `a.safetensors`"));
        assert!(index_error(r#"{"w": "b.safetensors"}"#).contains("b.safetensors: cannot be read"));
        assert!(index_error("7").contains("`weight_map`: is missing"));
    }

    #[test]
    fn shards_without_an_index_are_read_if_all_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let other = ONE.replace("\"w\"", "\"v\"");
        fs::write(dir.path().join("model-00001-of-00002.safetensors"), file_bytes(ONE, 8)).unwrap();
        let message = TensorSource::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("only model-00001-of-00002.safetensors; there must be all"), "{message}");
        fs::write(dir.path().join("model-00002-of-00002.safetensors"), file_bytes(&other, 8)).unwrap();
        let files = TensorSource::open(dir.path()).unwrap();
        assert!(files.has("w") && files.has("v"));
        fs::write(dir.path().join("model-00002-of-00002.safetensors"), file_bytes(ONE, 8)).unwrap();
        let message = TensorSource::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("`w`: is in an earlier shard too"), "{message}");
        fs::write(dir.path().join("model-00002-of-00003.safetensors"), file_bytes(&other, 8)).unwrap();
        assert!(TensorSource::open(dir.path()).unwrap_err().to_string().contains("there must be all of one set"));
    }

    #[test]
    fn a_sharded_model_opens_and_shapes_are_required() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TensorSource::open(dir.path()).unwrap_err().to_string().contains("holds neither"));
        fs::write(dir.path().join("a.safetensors"), file_bytes(ONE, 8)).unwrap();
        let other = r#"{"i":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#;
        fs::write(dir.path().join("b.safetensors"), file_bytes(other, 2)).unwrap();
        let map = r#"{"weight_map": {"w": "a.safetensors", "i": "b.safetensors"}}"#;
        fs::write(dir.path().join(INDEX), map).unwrap();
        let files = TensorSource::open(dir.path()).unwrap();
        assert_eq!(files.require("w", &[2, 1]).unwrap().read_f32().unwrap(), [0.0, 0.0]);
        let message = files.require("w", &[1, 2]).unwrap_err().to_string();
        assert!(message.contains("`w`: has shape [2, 1], but config.json asks for [1, 2]"), "{message}");
        assert!(files.require("v", &[1]).unwrap_err().to_string().contains("`v`: is missing"));
        assert!(files.require("i", &[2]).unwrap_err().to_string().contains("type I8"));
        assert!(files.get("i").is_none());
    }
}
