//! The parts of a model of several modalities that are neither trained nor used, and the experts of gpt-oss: written as they lie in its
//! files.

use std::collections::BTreeSet;

use safetensors::Dtype;

use super::writer::{ModelWriter, Planned};
use crate::model::listing::{Entry, RawTensor};
use crate::model::modules::HEAD;
use crate::model::source::Source;
use crate::model::tensors::TensorSpec;
use crate::{Error, Result};

/// The tensors beside the text decoder, and those that are listed as others, with their names in the files. What the files of a text model
/// hold beyond its configuration, such as the frequencies of rope, is left out.
pub(super) struct OtherParts(Vec<(Planned, RawTensor)>);

impl OtherParts {
    /// Lists the tensors of `source` that are not in `decoder`.
    ///
    /// # Errors
    /// A tensor of a type that safetensors files cannot hold.
    pub(super) fn of(source: &Source, decoder: &[TensorSpec]) -> Result<Self> {
        // A 4-bit matrix has its parts beside it, under longer names.
        let is_own = |name: &str| {
            decoder.iter().any(|own| {
                name.strip_prefix(own.name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let tied_head = |name: &str| source.config.tie_word_embeddings && name.starts_with(HEAD);
        let beside = source.tensors.entries().filter(|_| source.config.wrapper.is_some());
        let beside = beside.filter(|(name, _)| !is_own(name) && !tied_head(name));
        let others = beside.chain(source.tensors.wholes().iter().map(|whole| (whole.name(), whole)));
        let planned = |(name, entry): (&str, &Entry)| -> Result<(Planned, RawTensor)> {
            let raw = entry.raw();
            let dtype: Dtype = serde_json::from_value(raw.dtype.as_str().into()).map_err(|_| {
                Error::field(&raw.path, name, format!("has the type {}, which cannot be written", raw.dtype))
            })?;
            Ok((Planned { name: source.tensors.name_in_files(name).to_owned(), dtype, shape: raw.shape.clone() }, raw))
        };
        others.map(planned).collect::<Result<_>>().map(Self)
    }

    /// The tensors in the order in which [`Self::write`] writes them.
    pub(super) fn planned(&self) -> impl Iterator<Item = Planned> {
        self.0.iter().map(|(planned, _)| planned.clone())
    }

    /// True if some of them are in 4 bits.
    pub(super) fn quantized(&self) -> bool {
        self.0.iter().any(|(planned, _)| planned.name.ends_with(".absmax"))
    }

    /// The outermost modules that hold them, under each name that transformers gives them.
    pub(super) fn modules(&self) -> BTreeSet<String> {
        let outermost = |(planned, _): &(Planned, RawTensor)| {
            let below = planned.name.strip_prefix("model.").unwrap_or(&planned.name);
            let module = below.split('.').next().unwrap_or_default().to_owned();
            [format!("model.{module}"), module]
        };
        self.0.iter().flat_map(outermost).collect()
    }

    /// Writes them byte for byte.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(super) fn write(&self, writer: &mut ModelWriter) -> Result<()> {
        self.0.iter().try_for_each(|(planned, raw)| writer.write(&planned.name, &raw.read()?))
    }
}
