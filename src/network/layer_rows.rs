//! The embeddings of tokens for each layer of Gemma 4. Their table is larger than the rest of a small model, and only a few of its rows
//! are read at a time: it stays in the files, and each pass gets the rows of its tokens.

use std::collections::HashMap;

use super::activations::Inputs;
use crate::gpu::{Buffers, Gpu};
use crate::model::gemma4::TABLE;
use crate::model::listing::TensorInfo;
use crate::model::source::Source;
use crate::{Error, Result};

/// The table in the files.
#[derive(Clone, Debug)]
pub struct LayerRows {
    table: TensorInfo,
    layers: usize,
    width: usize,
}

impl LayerRows {
    /// Finds the table; None for a model without one.
    ///
    /// # Errors
    /// Files that have no such table.
    pub fn open(source: &Source) -> Result<Option<Self>> {
        let Some(of) = source.config.layer_embeddings() else { return Ok(None) };
        let layers = source.config.num_layers;
        let table = source.tensors.require(&format!("{TABLE}.weight"), &[of.vocab_size, layers * of.width])?.clone();
        Ok(Some(Self { table, layers, width: of.width }))
    }

    /// Reads the rows of `tokens` and uploads them for each layer, times `sqrt(width / 2)`.
    ///
    /// # Errors
    /// A token that has no row, or files that cannot be read.
    pub fn upload(&self, gpu: &Gpu, buffers: &Buffers, inputs: &Inputs, tokens: &[u32]) -> Result<()> {
        let mut rows: HashMap<u32, Vec<f32>> = HashMap::new();
        for token in tokens {
            if !rows.contains_key(token) {
                rows.insert(*token, self.row(*token)?);
            }
        }
        for (layer, place) in inputs.layer_embeddings.iter().enumerate() {
            let mut values = Vec::with_capacity(tokens.len() * place.ld as usize);
            for token in tokens {
                values.extend_from_slice(&rows[token][layer * self.width..][..self.width]);
                values.resize(values.len() + place.ld as usize - self.width, 0.0);
            }
            gpu.write(buffers, place.view, bytemuck::cast_slice(&values));
        }
        Ok(())
    }

    fn row(&self, token: u32) -> Result<Vec<f32>> {
        if token as usize >= self.table.shape[0] {
            let problem =
                format!("the token {token} has no embedding for each layer; there are {}", self.table.shape[0]);
            return Err(Error::Argument(problem));
        }
        let count = self.layers * self.width;
        let bytes = count as u64 * self.table.dtype.bytes();
        let row = TensorInfo { shape: vec![1, count], byte_len: bytes, ..self.table.clone() };
        let row = match row.blocks.clone() {
            Some(mut blocks) => {
                blocks.first_row += u64::from(token);
                TensorInfo { blocks: Some(blocks), ..row }
            }
            None => TensorInfo { file_offset: row.file_offset + u64::from(token) * bytes, ..row },
        };
        let mut values = row.read_f32()?;
        // The factors on the rows and on their sum with the projection.
        let factor = (self.width as f32 / 2.0).sqrt();
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(values)
    }
}
