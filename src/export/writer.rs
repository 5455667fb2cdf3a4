//! Writes a model's safetensors file tensor by tensor: all sizes are known first, the values follow one after another. Large models
//! are split into shards with an index, as transformers does.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::files::{File, create_new, write_atomically};
use crate::{Error, Result};

/// Default limit for the tensor bytes of one file.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor that will be written.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Planned {
    fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// Writes `model.safetensors` of a directory, or its shards and their index.
pub(super) struct ModelWriter {
    dir: PathBuf,
    /// Names and tensors of the files that are not written yet; the next file is last.
    coming: Vec<(String, Vec<Planned>)>,
    current: TensorWriter,
    /// Text of the index, if there are shards.
    index: Option<String>,
}

impl ModelWriter {
    /// Creates the first file. Tensors are stored in the order of `tensors`; each file holds as many as fit in `shard_bytes`, and at
    /// least one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn create(dir: &Path, tensors: Vec<Planned>, shard_bytes: u64) -> Result<Self> {
        let mut shards: Vec<Vec<Planned>> = vec![Vec::new()];
        let (mut filled, mut total) = (0, 0);
        for tensor in tensors {
            let bytes = tensor.bytes();
            total += bytes;
            if filled + bytes > shard_bytes && filled > 0 {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let count = shards.len();
        let name = |at: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
        };
        let mut coming: Vec<_> = shards.into_iter().enumerate().map(|(at, tensors)| (name(at), tensors)).collect();
        let place = |(file, tensors): &(String, Vec<Planned>)| -> Vec<(String, Value)> {
            tensors.iter().map(|tensor| (tensor.name.clone(), json!(file))).collect()
        };
        let index = (count > 1).then(|| {
            let map: Map<String, Value> = coming.iter().flat_map(place).collect();
            format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": map }))
        });
        coming.reverse();
        let (file, first) = coming.pop().unwrap_or_default();
        let current = TensorWriter::create(&dir.join(file), first)?;
        Ok(Self { dir: dir.to_owned(), coming, current, index })
    }

    /// Writes the next tensor, which must be `name`.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.current.left.is_empty()
            && let Some((file, tensors)) = self.coming.pop()
        {
            let next = TensorWriter::create(&self.dir.join(file), tensors)?;
            std::mem::replace(&mut self.current, next).finish()?;
        }
        self.current.write(name, bytes)
    }

    /// Writes everything to disk.
    pub(super) fn finish(self) -> Result<()> {
        assert!(self.coming.is_empty(), "{:?} were not written", self.coming);
        self.current.finish()?;
        match self.index {
            Some(index) => write_atomically(&self.dir.join("model.safetensors.index.json"), index.as_bytes()),
            None => Ok(()),
        }
    }
}

struct TensorWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Tensors that are not written yet; the next one is last.
    left: Vec<Planned>,
}

impl TensorWriter {
    /// Writes the header of `path`. Tensors are stored in the order of `tensors`.
    ///
    /// # Errors
    /// The file cannot be written.
    fn create(path: &Path, tensors: Vec<Planned>) -> Result<Self> {
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
        let mut offset = 0;
        for tensor in &tensors {
            let end = offset + tensor.bytes();
            let place =
                json!({ "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [offset, end] });
            header.insert(tensor.name.clone(), place);
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Readers that map the file into memory need aligned data.
        header.resize(header.len().next_multiple_of(8), b' ');
        let failed = |e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
        let mut file = BufWriter::new(create_new(path).map_err(failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(failed)?;
        let left = tensors.into_iter().rev().collect();
        Ok(Self { path: path.to_owned(), file, left })
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let next = self.left.pop();
        assert!(
            next.as_ref().is_some_and(|next| next.name == name && next.bytes() == bytes.len() as u64),
            "{next:?} is to be written next, not {} bytes of {name}",
            bytes.len()
        );
        self.file.write_all(bytes).map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }

    fn finish(mut self) -> Result<()> {
        assert!(self.left.is_empty(), "{:?} were not written", self.left);
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }
}
