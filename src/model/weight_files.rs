//! The weights of a Hugging Face model directory, one file or sharded, read tensor by tensor.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::json_fields::parse_object;
use super::safetensors_file::{self, Entry, MAX_HEADER_BYTES, RawTensor};
pub use super::safetensors_file::{TensorInfo, WeightDtype};
use super::tensors::TensorSpec;
use crate::{Error, Result, files};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where 4-bit copies of large models are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    pub dir: PathBuf,
    /// Of less than this in the model's files no copy is kept: quantizing it takes no time.
    pub min_bytes: u64,
    /// What all copies together may take.
    pub max_bytes: u64,
}

/// Where every tensor of a model lies; the data stays on disk until it is read.
#[derive(Debug)]
pub struct WeightFiles {
    /// The file that lists the tensors, for messages.
    listing: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Where a copy of what the device quantizes is kept; None keeps none.
    pub cache: Option<CacheSettings>,
}

impl WeightFiles {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` names; checks every header.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if files::is_file(&single) {
            return Ok(Self { entries: safetensors_file::read_header(&single)?, listing: single, cache: None });
        }
        if !files::is_file(&index) {
            let hint = match files::is_file(&dir.join("pytorch_model.bin")) {
                true => "; pytorch_model.bin cannot be read, convert it to safetensors",
                false => "",
            };
            return Err(Error::file(dir, format!("holds neither {SINGLE} nor {INDEX}{hint}")));
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
        Ok(Self { listing: index, entries, cache: None })
    }

    /// The tensor, if it is there in a usable type.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        match self.entries.get(name) {
            Some(Entry::Usable(info)) => Some(info),
            _ => None,
        }
    }

    /// The tensor, which must have `shape`, the one that `config.json` implies.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let error = |problem: String| Error::field(&self.listing, name, problem);
        match self.entries.get(name) {
            None => Err(error(format!("is missing; config.json asks for it with shape {shape:?}"))),
            Some(Entry::OtherDtype(raw)) => {
                Err(error(format!("has the type {}; supported are F32, F16 and BF16", raw.dtype)))
            }
            Some(Entry::Usable(info)) if info.shape != shape => {
                Err(error(format!("has shape {:?}, but config.json asks for {shape:?}", info.shape)))
            }
            Some(Entry::Usable(info)) => Ok(info),
        }
    }

    /// The tensor's bytes, whatever its type.
    pub(super) fn require_any_bytes(&self, name: &str) -> Result<RawTensor> {
        match self.entries.get(name) {
            None => {
                Err(Error::field(&self.listing, name, "is missing; config.json says that the weights are in 4 bits"))
            }
            Some(Entry::OtherDtype(raw)) => Ok(raw.clone()),
            Some(Entry::Usable(TensorInfo { name, path, file_offset, byte_len, dtype, .. })) => Ok(RawTensor {
                name: name.clone(),
                dtype: format!("{dtype:?}"),
                path: path.clone(),
                file_offset: *file_offset,
                byte_len: *byte_len,
            }),
        }
    }

    /// As [`Self::require_any_bytes`], of which there must be `byte_len`.
    pub(super) fn require_bytes(&self, name: &str, byte_len: u64) -> Result<RawTensor> {
        let raw = self.require_any_bytes(name)?;
        if raw.byte_len != byte_len {
            let problem = format!("has {} bytes, but config.json asks for {byte_len}", raw.byte_len);
            return Err(Error::field(&self.listing, name, problem));
        }
        Ok(raw)
    }

    /// Refuses a layer's weight or bias that is not among `expected`: a model with fewer layers, or without its biases,
    /// would run, and be another model. What else a file may carry (frequencies of rope, a tied head) does no harm.
    pub fn refuse_other_layer_tensors(&self, expected: &[TensorSpec]) -> Result<()> {
        let expected: HashSet<&str> = expected.iter().map(|spec| spec.name.as_str()).collect();
        let is_weight = |name: &str| name.ends_with(".weight") || name.ends_with(".bias");
        let mut names = self.entries.keys().filter(|name| name.starts_with("model.layers.") && is_weight(name));
        match names.find(|name| !expected.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Error::field(
                &self.listing,
                name,
                "is unexpected: the model that config.json describes has no such tensor",
            )),
        }
    }

    /// Fills `buf` with the tensor's little-endian bytes from `byte_offset` on.
    pub fn read(&self, tensor: &TensorInfo, byte_offset: u64, buf: &mut [u8]) -> Result<()> {
        safetensors_file::read_bytes(tensor, byte_offset, buf)
    }

    /// The first bytes of every tensor of a usable type, by which one model is told from another.
    pub fn beginnings(&self, mut each: impl FnMut(&str, &[u8])) -> Result<()> {
        const BYTES: u64 = 4096;
        for (name, entry) in &self.entries {
            if let Entry::Usable(info) = entry {
                let mut bytes = vec![0; info.byte_len.min(BYTES) as usize];
                self.read(info, 0, &mut bytes)?;
                each(name, &bytes);
            }
        }
        Ok(())
    }

    /// The whole tensor, widened to f32; for norms, biases and tests.
    pub fn read_all(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        safetensors_file::read_f32(tensor)
    }
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
    use crate::model::config::ModelConfig;
    use crate::model::safetensors_file::tests::file_bytes;
    use crate::model::tensors::tensors;

    const ONE: &str = r#"{"w":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;

    fn index_error(weight_map: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.safetensors"), file_bytes(ONE, 8)).unwrap();
        fs::write(dir.path().join(INDEX), format!(r#"{{"weight_map": {weight_map}}}"#)).unwrap();
        WeightFiles::open(dir.path()).expect_err(weight_map).to_string()
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
    fn a_sharded_model_opens_and_shapes_are_required() {
        let dir = tempfile::tempdir().unwrap();
        assert!(WeightFiles::open(dir.path()).unwrap_err().to_string().contains("holds neither"));
        fs::write(dir.path().join("a.safetensors"), file_bytes(ONE, 8)).unwrap();
        let other = r#"{"i":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#;
        fs::write(dir.path().join("b.safetensors"), file_bytes(other, 2)).unwrap();
        let map = r#"{"weight_map": {"w": "a.safetensors", "i": "b.safetensors"}}"#;
        fs::write(dir.path().join(INDEX), map).unwrap();
        let files = WeightFiles::open(dir.path()).unwrap();
        assert_eq!(files.read_all(files.require("w", &[2, 1]).unwrap()).unwrap(), [0.0, 0.0]);
        let message = files.require("w", &[1, 2]).unwrap_err().to_string();
        assert!(message.contains("`w`: has shape [2, 1], but config.json asks for [1, 2]"), "{message}");
        assert!(files.require("v", &[1]).unwrap_err().to_string().contains("`v`: is missing"));
        assert!(files.require("i", &[2]).unwrap_err().to_string().contains("type I8"));
        assert!(files.get("i").is_none());
    }

    #[test]
    fn a_real_model_has_every_expected_tensor() {
        let dir = Path::new("../shared/models/stories260K");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        }
        let config = ModelConfig::from_file(&dir.join("config.json")).unwrap();
        let files = WeightFiles::open(dir).unwrap();
        let expected = tensors(&config);
        assert_eq!(expected.len(), 47);
        for spec in &expected {
            files.require(&spec.name, &spec.shape).unwrap();
        }
        let norm = files.require("model.norm.weight", &[64]).unwrap();
        let whole = files.read_all(norm).unwrap();
        let mut piece = [0; 8];
        files.read(norm, 8, &mut piece).unwrap();
        assert_eq!(piece[..4], whole[2].to_le_bytes());
    }
}
