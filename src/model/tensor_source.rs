//! The tensors that a model directory holds, whatever container its files are in.
//!
//! Only [`TensorSource::open`] knows the container. Another one (GGUF) is a new file beside `safetensors_index.rs` whose
//! `list` gives a `Listing` under the names of `tensors.rs`, and one more case in `open`.

use std::collections::BTreeMap;
use std::path::Path;

use super::listing::{Entry, Listing, RawTensor, TensorInfo};
use super::modules::{EMBEDDING, HEAD};
use super::safetensors_index;
use super::wrapper::text_name;
use crate::quant::format::Float;
use crate::{Error, Result};

/// Gives the tensors of the decoder in a model of several modalities the names of a text model; answers with their names in the files.
fn unwrap_names(listing: &mut Listing) -> BTreeMap<String, String> {
    let names: Vec<String> = listing.entries.keys().cloned().collect();
    let mut in_files = BTreeMap::new();
    for name in names {
        let Some(ours) = text_name(&name).filter(|ours| !listing.entries.contains_key(ours)) else { continue };
        rename(listing, &name, &ours);
        in_files.insert(ours, name);
    }
    in_files
}

/// Files that were saved from the decoder without its head have names without `model.`, as transformers reads them too.
fn add_prefix(listing: &mut Listing) {
    let base = format!("{}.", EMBEDDING.split('.').next().unwrap_or_default());
    let Some(without) = EMBEDDING.strip_prefix(&base) else { return };
    if listing.entries.keys().any(|name| name.starts_with(&base))
        || !listing.entries.contains_key(&format!("{without}.weight"))
    {
        return;
    }
    let names: Vec<String> = listing.entries.keys().filter(|name| !name.starts_with(HEAD)).cloned().collect();
    for name in names {
        rename(listing, &name, &format!("{base}{name}"));
    }
}

fn rename(listing: &mut Listing, from: &str, to: &str) {
    if let Some(mut entry) = listing.entries.remove(from) {
        match &mut entry {
            Entry::Float(info) => info.name = to.to_owned(),
            Entry::Other(raw) => raw.name = to.to_owned(),
        }
        listing.entries.insert(to.to_owned(), entry);
    }
}

/// The tensors of a model directory; their data stay on disk until they are read.
#[derive(Debug)]
pub struct TensorSource {
    listing: Listing,
    /// The names in the files of the tensors that are listed under another.
    in_files: BTreeMap<String, String>,
}

impl TensorSource {
    /// Lists the tensors of a model directory and checks every header.
    ///
    /// # Errors
    /// No weights in a known container, or a header that is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut listing = safetensors_index::list(dir)?;
        let in_files = unwrap_names(&mut listing);
        add_prefix(&mut listing);
        Ok(Self { listing, in_files })
    }

    /// True if there is a tensor of this name, of whatever type.
    pub fn has(&self, name: &str) -> bool {
        self.listing.entries.contains_key(name)
    }

    /// Lists a tensor under another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        rename(&mut self.listing, from, to);
    }

    /// The name that the files give to the tensor `name`.
    pub fn name_in_files<'a>(&'a self, name: &'a str) -> &'a str {
        self.in_files.get(name).map_or(name, String::as_str)
    }

    /// Every tensor with its name, of whatever type.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.listing.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// A source without a tensor, for a model whose weights are drawn anew. `path` is for messages.
    pub fn empty(path: &Path) -> Self {
        Self { listing: Listing { path: path.to_owned(), entries: BTreeMap::new() }, in_files: BTreeMap::new() }
    }

    /// The tensor, if it is there in a float type.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        match self.listing.entries.get(name) {
            Some(Entry::Float(info)) => Some(info),
            _ => None,
        }
    }

    /// The tensor, which must have `shape`, the one that `config.json` implies.
    ///
    /// # Errors
    /// A tensor that is missing, of another type or of another shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let error = |problem: String| Error::field(&self.listing.path, name, problem);
        match self.listing.entries.get(name) {
            None => Err(error(format!("is missing; config.json asks for it with shape {shape:?}"))),
            Some(Entry::Other(raw)) => {
                Err(error(format!("has the type {}; supported are F32, F16 and BF16", raw.dtype)))
            }
            Some(Entry::Float(info)) if info.shape != shape => {
                Err(error(format!("has shape {:?}, but config.json asks for {shape:?}", info.shape)))
            }
            Some(Entry::Float(info)) => Ok(info),
        }
    }

    /// The tensor's bytes, whatever its type.
    pub(super) fn require_any_bytes(&self, name: &str) -> Result<RawTensor> {
        match self.listing.entries.get(name) {
            None => Err(Error::field(
                &self.listing.path,
                name,
                "is missing; config.json says that the weights are in 4 bits",
            )),
            Some(Entry::Other(raw)) => Ok(raw.clone()),
            Some(Entry::Float(info)) => Ok(info.raw()),
        }
    }

    /// The bytes of a tensor of whatever type, of which there must be `byte_len`.
    pub(super) fn require_bytes(&self, name: &str, byte_len: u64) -> Result<RawTensor> {
        let raw = self.require_any_bytes(name)?;
        if raw.byte_len != byte_len {
            let problem = format!("has {} bytes, but config.json asks for {byte_len}", raw.byte_len);
            return Err(Error::field(&self.listing.path, name, problem));
        }
        Ok(raw)
    }

    /// The names of all tensors, of whatever type.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.listing.entries.keys().map(String::as_str)
    }

    /// The file that lists the tensors, for messages.
    pub fn path(&self) -> &Path {
        &self.listing.path
    }

    /// The type in which the files hold a tensor; None where they hold none of this name in a float type.
    pub fn float(&self, name: &str) -> Option<Float> {
        self.get(name).map(|info| info.dtype)
    }

    /// Gives `each` the name and first bytes of every tensor of a float type: they tell one model from another.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn beginnings(&self, mut each: impl FnMut(&str, &[u8])) -> Result<()> {
        const BYTES: u64 = 4096;
        for (name, entry) in &self.listing.entries {
            if let Entry::Float(info) = entry {
                let mut bytes = vec![0; info.byte_len.min(BYTES) as usize];
                info.read(0, &mut bytes)?;
                each(name, &bytes);
            }
        }
        Ok(())
    }
}
