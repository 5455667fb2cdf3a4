//! The tensors that a model directory holds, whatever container its files are in.
//!
//! Only [`TensorSource::open`] knows the container. Another one is a new file beside `safetensors_index.rs` and `gguf_tensors.rs` whose
//! `list` gives a `Listing` under the names of `tensors.rs`, and one more case in `open`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::gguf_file::is_gguf;
use super::gguf_tensors;
use super::listing::{Entry, Listing, RawTensor, TensorInfo};
use super::modules::{EMBEDDING, HEAD};
use super::safetensors_index;
use super::wrapper::text_name;
use crate::files::Fingerprint;
use crate::quant::format::{Float, Format4, NESTED_BLOCK};
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

/// Takes away the names of modules around the whole model: those of DistributedDataParallel and of torch.compile.
fn take_out_of_wrappers(listing: &mut Listing) {
    while let Some(wrapper) = ["module.", "_orig_mod."]
        .into_iter()
        .find(|wrapper| listing.entries.keys().all(|name| name.starts_with(wrapper)) && !listing.entries.is_empty())
    {
        let names: Vec<String> = listing.entries.keys().cloned().collect();
        for name in names {
            rename(listing, &name, &name[wrapper.len()..]);
        }
    }
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
    if let Some(entry) = listing.entries.remove(from) {
        listing.entries.insert(to.to_owned(), entry.renamed(to.to_owned()));
    }
}

/// The tensors of a model directory; their data stay on disk until they are read.
#[derive(Clone, Debug)]
pub struct TensorSource {
    listing: Listing,
    /// The names in the files of the tensors that are listed under another.
    in_files: BTreeMap<String, String>,
    /// The tensors of the files of which listed ones are a range of rows, by the names of these.
    fusions: BTreeMap<String, Fusion>,
    /// Tensors of the files whose values are listed as other tensors, and the names of these.
    wholes: Vec<Entry>,
    gathered: BTreeSet<String>,
}

/// A tensor of the files that is listed as several, each a range of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// Its name in the files.
    pub name: String,
    /// Its whole shape.
    pub shape: Vec<usize>,
    /// The place of this part among the parts.
    pub part: usize,
    /// Number of the parts.
    pub parts: usize,
}

impl TensorSource {
    /// Lists the tensors of a model directory, or of a GGUF file, and checks every header.
    ///
    /// # Errors
    /// No weights in a known container, or a header that is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut listing = match is_gguf(dir) {
            true => gguf_tensors::list(dir)?,
            false => safetensors_index::list(dir)?,
        };
        take_out_of_wrappers(&mut listing);
        let in_files = unwrap_names(&mut listing);
        add_prefix(&mut listing);
        Ok(Self { listing, in_files, fusions: BTreeMap::new(), wholes: Vec::new(), gathered: BTreeSet::new() })
    }

    /// True if there is a tensor of this name, of whatever type.
    pub fn has(&self, name: &str) -> bool {
        self.listing.entries.contains_key(name)
    }

    /// Lists a tensor under another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        rename(&mut self.listing, from, to);
    }

    /// Lists everything of the module `from` (its weight, its bias, the parts of a 4-bit weight) under the module `to`.
    pub(super) fn rename_module(&mut self, from: &str, to: &str) {
        let below = format!("{from}.");
        let from = self.listing.entries.range(below.clone()..).map(|(name, _)| name);
        let names: Vec<String> = from.take_while(|name| name.starts_with(&below)).cloned().collect();
        for name in names {
            let new = format!("{to}.{}", &name[below.len()..]);
            self.list_as(&name, &new);
        }
    }

    /// Lists a tensor, if there is one of this name, under another name, and keeps its name in the files.
    pub(super) fn list_as(&mut self, from: &str, to: &str) {
        if self.has(from) {
            let in_file = self.in_files.remove(from).unwrap_or_else(|| from.to_owned());
            rename(&mut self.listing, from, to);
            self.in_files.insert(to.to_owned(), in_file);
        }
    }

    /// Lists `parts` in place of the tensors `names`, of whose values they are made.
    pub(super) fn split(&mut self, names: &[&str], parts: Vec<TensorInfo>) {
        self.wholes.extend(names.iter().filter_map(|name| self.listing.entries.remove(*name)));
        for part in parts {
            self.gathered.insert(part.name.clone());
            self.list(Entry::Float(part));
        }
    }

    /// The tensors of the files whose values are listed as other tensors.
    pub(crate) fn wholes(&self) -> &[Entry] {
        &self.wholes
    }

    /// True if the values of a tensor are some of those of a larger one, which is written as a whole.
    pub fn is_gathered(&self, name: &str) -> bool {
        self.gathered.contains(name)
    }

    /// Drops the tensors of a module from the list.
    pub(super) fn remove_module(&mut self, module: &str) {
        let below = format!("{module}.");
        self.listing.entries.retain(|name, _| !name.starts_with(&below));
    }

    /// Lists the weight and the bias of the module `fused` as those of `parts`, the names of modules with their numbers of rows. A weight
    /// in 4 bits is in the format `stored`.
    ///
    /// # Errors
    /// A tensor of another number of rows, or 4-bit blocks that reach over the border of two parts.
    pub(super) fn split_module(
        &mut self,
        fused: &str,
        parts: &[(String, usize)],
        stored: Option<Format4>,
    ) -> Result<()> {
        match stored {
            Some(format) => self.split_packed(fused, parts, format)?,
            None => self.split_rows(fused, "weight", parts)?,
        }
        self.split_rows(fused, "bias", parts)
    }

    /// Splits a tensor of floats, if there is one, by its rows.
    fn split_rows(&mut self, fused: &str, suffix: &str, parts: &[(String, usize)]) -> Result<()> {
        let name = format!("{fused}.{suffix}");
        let Some(Entry::Float(whole)) = self.listing.entries.get(&name).cloned() else { return Ok(()) };
        let rows: usize = parts.iter().map(|(_, rows)| rows).sum();
        if whole.shape.first() != Some(&rows) {
            let problem = format!("has shape {:?}, but config.json asks for {rows} rows", whole.shape);
            return Err(Error::field(self.path(), self.name_in_files(&name), problem));
        }
        self.listing.entries.remove(&name);
        let (mut file_offset, mut first_row) = (whole.file_offset, 0);
        for (module, part_rows) in parts {
            let byte_len = whole.byte_len / rows as u64 * *part_rows as u64;
            let mut shape = whole.shape.clone();
            shape[0] = *part_rows;
            let name = format!("{module}.{suffix}");
            let mut part = TensorInfo { name, shape, file_offset, byte_len, ..whole.clone() };
            match &mut part.blocks {
                Some(blocks) => {
                    blocks.first_row += first_row;
                    first_row += *part_rows as u64;
                }
                None => file_offset += byte_len,
            }
            self.list(Entry::Float(part));
        }
        self.remember_fusion(&name, suffix, &whole.shape, parts);
        Ok(())
    }

    /// Splits a matrix in 4 bits: a part has whole blocks, and of double-quantized scales whole blocks again.
    fn split_packed(&mut self, fused: &str, parts: &[(String, usize)], format: Format4) -> Result<()> {
        let weight = format!("{fused}.weight");
        let rows: u64 = parts.iter().map(|(_, rows)| *rows as u64).sum();
        let packed = self.require_any_bytes(&weight)?;
        let cols = 2 * packed.byte_len / rows;
        let block = format.code.block() * if format.double { NESTED_BLOCK } else { 1 };
        let whole_blocks = |rows: usize| (rows as u64 * cols).is_multiple_of(block);
        if cols * rows != 2 * packed.byte_len || !parts.iter().all(|(_, rows)| whole_blocks(*rows)) {
            let problem = "is in 4 bits, in blocks that do not end where its parts do; take the model in 16 or 32 bits";
            return Err(Error::field(self.path(), self.name_in_files(&weight), problem));
        }
        self.require_bytes(&format!("{weight}.absmax"), format.absmax_bytes(rows * cols))?;
        if format.double {
            self.require_bytes(&format!("{weight}.nested_absmax"), 4 * format.nested_scales(rows * cols))?;
        }
        let below = format!("{weight}.");
        let is_piece = |name: &String, _: &mut Entry| *name == weight || name.starts_with(&below);
        let pieces: Vec<Entry> = self.listing.entries.extract_if(.., is_piece).map(|(_, entry)| entry).collect();
        let mut first = 0;
        for (module, part_rows) in parts {
            let elements = *part_rows as u64 * cols;
            for piece in &pieces {
                let suffix = &piece.name()[weight.len()..];
                let name = format!("{module}.weight{suffix}");
                let range = |bytes: &dyn Fn(u64) -> u64| piece.range(name.clone(), bytes(first), bytes(elements));
                self.list(match suffix {
                    "" => range(&|elements| format.packed_bytes(elements)),
                    ".absmax" => range(&|elements| format.absmax_bytes(elements)),
                    ".nested_absmax" => range(&|elements| 4 * format.nested_scales(elements)),
                    // The tables of codes and the state are those of the whole.
                    _ => piece.clone().renamed(name),
                });
            }
            first += elements;
        }
        self.remember_fusion(&weight, "weight", &[rows as usize, cols as usize], parts);
        Ok(())
    }

    fn list(&mut self, entry: Entry) {
        self.listing.entries.insert(entry.name().to_owned(), entry);
    }

    /// Keeps that the tensors of `parts` are rows of the tensor `name` of this shape.
    fn remember_fusion(&mut self, name: &str, suffix: &str, shape: &[usize], parts: &[(String, usize)]) {
        let in_file = self.in_files.remove(name).unwrap_or_else(|| name.to_owned());
        for (part, (module, _)) in parts.iter().enumerate() {
            let fusion = Fusion { name: in_file.clone(), shape: shape.to_vec(), part, parts: parts.len() };
            self.fusions.insert(format!("{module}.{suffix}"), fusion);
        }
    }

    /// The tensor of the files of which the tensor `name` is a part; None where it is a whole one.
    pub fn fusion(&self, name: &str) -> Option<&Fusion> {
        self.fusions.get(name)
    }

    /// Name and shape of the tensor of the files that begins with the tensor `name` of this shape: itself, or one of which it is the first
    /// part. None for a further part.
    pub fn begun_by<'a>(&'a self, name: &'a str, shape: &'a [usize]) -> Option<(&'a str, &'a [usize])> {
        match self.fusion(name) {
            None => Some((self.name_in_files(name), shape)),
            Some(Fusion { name, shape, part: 0, .. }) => Some((name, shape)),
            Some(_) => None,
        }
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
        Self {
            listing: Listing { path: path.to_owned(), entries: BTreeMap::new() },
            in_files: BTreeMap::new(),
            fusions: BTreeMap::new(),
            wholes: Vec::new(),
            gathered: BTreeSet::new(),
        }
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
            Some(entry) => Ok(entry.raw()),
        }
    }

    /// A tensor of bytes, which must have `shape`.
    ///
    /// # Errors
    /// A tensor that is missing, of another type or of another shape.
    pub(super) fn require_raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor> {
        let raw = self.require_any_bytes(name)?;
        if raw.shape != shape || raw.byte_len != shape.iter().map(|size| *size as u64).product::<u64>() {
            let problem = format!("is {} {:?}, but config.json asks for U8 {shape:?}", raw.dtype, raw.shape);
            return Err(Error::field(&self.listing.path, name, problem));
        }
        Ok(raw)
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

    /// The fingerprint of the names and first bytes of all tensors of a float type: it tells one model from another.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        const BYTES: u64 = 4096;
        let mut weights = Fingerprint::default();
        for (name, entry) in &self.listing.entries {
            if let Entry::Float(info) = entry
                && !self.is_gathered(name)
            {
                let mut bytes = vec![0; info.byte_len.min(BYTES) as usize];
                info.read(0, &mut bytes)?;
                weights.add(name.as_bytes());
                weights.add(&bytes);
            }
        }
        for whole in self.wholes.iter().map(Entry::raw) {
            let mut bytes = vec![0; whole.byte_len.min(BYTES) as usize];
            whole.read_piece(0, &mut bytes)?;
            weights.add(whole.name.as_bytes());
            weights.add(&bytes);
        }
        Ok(weights.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::safetensors_file::tests::file_bytes;

    #[test]
    fn modules_around_the_model_leave_no_trace_in_names() {
        let listed = |names: [&str; 2]| {
            let dir = tempfile::tempdir().unwrap();
            let entry =
                |name: &str, at| format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{}]}}"#, at + 4);
            let header = format!("{{{},{}}}", entry(names[0], 0), entry(names[1], 4));
            std::fs::write(dir.path().join("model.safetensors"), file_bytes(&header, 8)).unwrap();
            let source = TensorSource::open(dir.path()).unwrap();
            source.entries().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        let plain = ["lm_head.weight", "model.norm.weight"];
        for around in ["", "module.", "_orig_mod.", "module._orig_mod."] {
            let names = plain.map(|name| format!("{around}{name}"));
            assert_eq!(listed([&names[0], &names[1]]), plain, "{around}");
        }
        assert_eq!(listed(["module.x", "model.y"]), ["model.y", "module.x"]);
    }
}
