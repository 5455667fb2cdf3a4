//! A safetensors file written tensor by tensor: the sizes are known first, the values come one after another.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// A tensor to come.
#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Planned {
    fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

pub struct TensorWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Those that have not been written yet, the next one last.
    left: Vec<Planned>,
}

impl TensorWriter {
    /// Writes the header of `path`. Tensors lie in the order of `tensors`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn create(path: &Path, tensors: Vec<Planned>) -> Result<Self> {
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
        // Readers that map the file want its data aligned.
        header.resize(header.len().next_multiple_of(8), b' ');
        let failed = |e: std::io::Error| Error::file(path, format!("cannot be written: {e}"));
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(failed)?;
        let left = tensors.into_iter().rev().collect();
        Ok(Self { path: path.to_owned(), file, left })
    }

    /// Writes the next tensor, which must be `name`.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let next = self.left.pop();
        assert!(
            next.as_ref().is_some_and(|next| next.name == name && next.bytes() == bytes.len() as u64),
            "{next:?} is to be written next, not {} bytes of {name}",
            bytes.len()
        );
        self.file.write_all(bytes).map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }

    /// Puts everything on disk.
    pub fn finish(mut self) -> Result<()> {
        assert!(self.left.is_empty(), "{:?} were not written", self.left);
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|e| Error::file(&self.path, format!("cannot be written: {e}")))
    }
}
