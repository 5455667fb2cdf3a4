//! Weights from disk to the device in bounded pieces; 4-bit storage is quantized on the device as the pieces arrive.

use std::ops::Range;
use std::path::Path;

use super::activations::{Phase, through};
use super::base::Network;
use super::quantized_cache::QuantizedCache;
use crate::gpu::{Arena, Buffers, Gpu, MemoryPlan, PARAMS_STRIDE, Recorder, View};
use crate::model::listing::TensorInfo;
use crate::model::modules::LinearPart;
use crate::model::packed::PackedWeight;
use crate::model::rope;
use crate::model::source::Source;
use crate::model::tensors::{TensorKind, TensorSpec};
use crate::ops::quantize;
use crate::ops::weight::{Panel, Weight};
use crate::quant::format::{Float, Format4, Storage};
use crate::quant::{Quantized, Scales, dynamic_map};
use crate::random::{Stream, normal, uniform};
use crate::{Error, Result};

/// Bytes of a tensor that are read at a time. Host memory stays at a few of these, whatever the size of the model; a browser's never
/// shrinks again.
const PIECE_BYTES: u64 = if cfg!(target_arch = "wasm32") { 4 << 20 } else { 16 << 20 };
/// Written pieces wait in host memory. After this many, loading waits until the device has taken them.
const PIECES_IN_FLIGHT: usize = 4;

/// The device buffers that loading needs beside the weights themselves; what runs later takes their places.
#[derive(Clone, Copy, Debug)]
pub struct Staging {
    source: View,
    absmax: View,
    code_table: View,
    code_map: View,
    uniform: View,
}

impl Staging {
    /// Plans the buffers; `None` where nothing is quantized, since float weights are written to their place directly.
    pub fn plan(plan: &mut MemoryPlan, arena: &mut Arena, network: &Network) -> Option<Self> {
        let packed = &network.config.quantized;
        let quantized = |spec: &TensorSpec, w: &Weight| {
            matches!(w.storage, Storage::Quantized(_)) && !packed.contains_key(&spec.name)
        };
        let sizes = network.weights().filter(|(spec, w)| quantized(spec, w)).filter_map(|(_, w)| {
            let Storage::Quantized(format) = w.storage else { return None };
            let elements = u64::from(w.panels[0].rows) * u64::from(w.in_features);
            Some((elements, format.code.format(false).absmax_bytes(elements)))
        });
        // The matrices of a base are of one format: the largest has the most of both.
        let (largest, absmax_bytes) = sizes.max()?;
        let loading = [through(Phase::Loading, Phase::Loading)];
        let mut buffer = |label: &str, bytes| arena.alloc(plan, label, bytes, &loading);
        Some(Self {
            source: buffer("upload staging", PIECE_BYTES.min(4 * largest)),
            absmax: buffer("absmax staging", absmax_bytes),
            code_table: buffer("4-bit code table", 4 * 31),
            code_map: buffer("8-bit code map", 4 * 511),
            uniform: buffer("loading parameters", 4 * PARAMS_STRIDE),
        })
    }
}

/// Reads every tensor of `network` and uploads it. `progress` receives the bytes done so far and the bytes in all.
///
/// # Errors
/// Files that cannot be read, values that are not finite, or a failing device.
pub async fn load(
    gpu: &Gpu,
    buffers: &mut Buffers,
    source: &Source,
    network: &Network,
    staging: Option<&Staging>,
    recorder: impl Fn() -> Recorder,
    progress: impl FnMut(u64, u64),
) -> Result<()> {
    let config = &network.config;
    let quantized = |weight: &Weight| matches!(weight.storage, Storage::Quantized { .. });
    let mut tensors: Vec<(&TensorInfo, &Weight)> = Vec::new();
    let mut packed: Vec<(PackedWeight, &Weight)> = Vec::new();
    let mut to_quantize: Vec<(String, &Weight)> = Vec::new();
    for (spec, weight) in network.weights() {
        let shape = [weight.out_features as usize, weight.in_features as usize];
        match config.quantized.get(&spec.name) {
            Some(stored) => packed.push((PackedWeight::find(&source.tensors, &spec.name, shape, *stored)?, weight)),
            None => {
                tensors.push((source.tensors.require(&spec.name, &shape)?, weight));
                if quantized(weight) {
                    to_quantize.push((spec.name, weight));
                }
            }
        }
    }
    let cache = QuantizedCache::of(source, &to_quantize);
    let of_packed: u64 = packed.iter().map(|(packed, _)| packed.bytes()).sum();
    let total = tensors.iter().map(|(info, _)| info.byte_len).sum::<u64>() + of_packed;
    let mut loader = Loader { gpu, buffers, recorder, progress, done: 0, total };
    for (packed, weight) in packed {
        loader.load_packed(&packed.read()?, weight).await?;
        loader.advance(packed.bytes());
    }
    let mut cached = false;
    if let Some(cache) = &cache {
        let of_cached: u64 = tensors.iter().filter(|(_, w)| quantized(w)).map(|(info, _)| info.byte_len).sum();
        cached = loader.restore(cache, of_cached).await?;
        if cached {
            tensors.retain(|(_, weight)| !quantized(weight));
        }
    }
    for (info, weight) in tensors {
        match (weight.storage, staging) {
            (Storage::Float(float), _) => loader.load_float(info, weight, float).await?,
            (Storage::Quantized(format), Some(staging)) => loader.quantize(info, weight, format, staging).await?,
            (Storage::Quantized(_), None) => unreachable!("a network with 4-bit weights is loaded with staging"),
            (Storage::Blocks(_), _) => unreachable!("blocks are packed in their file"),
        }
    }
    if let Some(cache) = cache.filter(|_| !cached) {
        cache.store(gpu, loader.buffers).await?;
    }
    for (spec, view) in network.vectors() {
        let info = source.tensors.require(&spec.name, &spec.shape)?;
        let values = info.read_f32()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(not_finite(&info.path, &spec.name, at as u64));
        }
        let values = if spec.kind == TensorKind::LayerScalar { vec![values[0]; config.hidden_size] } else { values };
        gpu.write(buffers, view, bytemuck::cast_slice(&values));
    }
    write_tables(gpu, buffers, network);
    gpu.flush().await?;
    Ok(())
}

fn write_tables(gpu: &Gpu, buffers: &Buffers, network: &Network) {
    let (config, positions) = (&network.config, network.max_positions);
    if let Some(ones) = network.ones {
        gpu.write(buffers, ones, bytemuck::cast_slice(&vec![1.0f32; (ones.bytes / 4) as usize]));
    }
    for (rope, tables) in config.ropes.iter().zip(&network.rope_tables) {
        let keys = rope::table(rope, config.max_position_embeddings, positions);
        gpu.write(buffers, tables.keys, bytemuck::cast_slice(&keys));
        if tables.queries != tables.keys {
            let queries = rope::query_table(rope, config.max_position_embeddings, positions);
            gpu.write(buffers, tables.queries, bytemuck::cast_slice(&queries));
        }
    }
}

fn not_finite(path: &Path, tensor: &str, element: u64) -> Error {
    Error::field(path, tensor, format!("holds a value that is not finite (element {element}); the file is damaged"))
}

/// Reads bytes `offset ..` of the tensor and refuses NaN and infinity, by their exponent bits.
fn read_piece(info: &TensorInfo, offset: u64, piece: &mut [u8]) -> Result<()> {
    info.read(offset, piece)?;
    let bad = match info.dtype {
        Float::F32 => piece
            .chunks_exact(4)
            .position(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000),
        Float::F16 => piece.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00),
        Float::Bf16 => piece.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80),
    };
    match bad {
        Some(at) => Err(not_finite(&info.path, &info.name, offset / info.dtype.bytes() + at as u64)),
        None => Ok(()),
    }
}

/// The values of a piece in f32.
fn widened(piece: &[u8], dtype: Float) -> Vec<f32> {
    let halves = || piece.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Float::F32 => bytemuck::pod_collect_to_vec(piece),
        Float::F16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        Float::Bf16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
    }
}

/// Pieces of a byte range as (offset, length).
fn pieces(bytes: u64, piece: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..bytes.div_ceil(piece)).map(move |i| (i * piece, piece.min(bytes - i * piece)))
}

/// The loading of one network.
struct Loader<'a, R, P> {
    gpu: &'a Gpu,
    buffers: &'a mut Buffers,
    /// Makes an empty list of commands.
    recorder: R,
    /// Receives the bytes done so far and the bytes in all.
    progress: P,
    done: u64,
    total: u64,
}

impl<R: Fn() -> Recorder, P: FnMut(u64, u64)> Loader<'_, R, P> {
    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(self.done, self.total);
    }

    /// Waits, after every few pieces, until the queue has taken those that were written.
    async fn drain(&self, piece: usize) -> Result<()> {
        if piece % PIECES_IN_FLIGHT == PIECES_IN_FLIGHT - 1 {
            self.gpu.flush().await?;
        }
        Ok(())
    }

    /// Fills the 4-bit weights from their copy, in place of `bytes` of files; false where there is no copy of them.
    async fn restore(&mut self, cache: &QuantizedCache, bytes: u64) -> Result<bool> {
        let (done, total, progress) = (self.done, self.total, &mut self.progress);
        let show = |share: f64| progress(done + (share * bytes as f64) as u64, total);
        let restored = cache.restore(self.gpu, self.buffers, show).await?;
        if restored {
            self.done += bytes;
        }
        Ok(restored)
    }

    async fn load_float(&mut self, info: &TensorInfo, weight: &Weight, float: Float) -> Result<()> {
        let width = info.dtype.bytes();
        let row_bytes = u64::from(weight.in_features) * width;
        for Panel { first_row, rows, data, .. } in &weight.panels {
            let start = u64::from(*first_row) * row_bytes;
            for (i, (offset, length)) in pieces(u64::from(*rows) * row_bytes, PIECE_BYTES).enumerate() {
                let mut piece = vec![0; length as usize];
                read_piece(info, start + offset, &mut piece)?;
                let at = offset / width * float.bytes();
                if info.dtype != float {
                    piece = bytemuck::cast_slice(&widened(&piece, info.dtype)).to_vec();
                }
                // The queue writes whole words; a 16-bit tensor may end in half of one.
                piece.resize(piece.len().next_multiple_of(4), 0);
                self.gpu.write(self.buffers, data.slice(at, data.bytes - at), &piece);
                self.drain(i).await?;
                self.advance(length);
            }
        }
        Ok(self.gpu.flush().await?)
    }

    /// Writes a weight that its file holds in 4 bits already, as it is.
    async fn load_packed(&self, quantized: &Quantized, weight: &Weight) -> Result<()> {
        let write = |view: View, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            self.gpu.write(self.buffers, view, &bytes);
        };
        for Panel { first_row, rows, data, absmax, nested } in &weight.panels {
            let [first, end] =
                [*first_row, first_row + rows].map(|rows| u64::from(rows) * u64::from(weight.in_features));
            let range =
                |bytes: fn(Storage, u64) -> u64| [first, end].map(|elements| bytes(weight.storage, elements) as usize);
            let [codes, codes_end] = range(|storage, elements| storage.bytes(elements).0);
            write(*data, &quantized.packed[codes..codes_end]);
            match (&quantized.scales, absmax, nested) {
                (Scales::Plain(absmax), Some(view), _) => {
                    let [of_blocks, end] = range(|storage, elements| storage.scale_bytes(elements)[0].unwrap_or(0) / 4);
                    write(*view, bytemuck::cast_slice(&absmax[of_blocks..end]));
                }
                // Such a weight is one panel.
                (Scales::Nested { codes, absmax, offset }, Some(view), Some(nested)) => {
                    write(*view, codes);
                    let values: Vec<f32> = dynamic_map().iter().chain([offset]).chain(absmax).copied().collect();
                    write(*nested, bytemuck::cast_slice(&values));
                }
                _ => unreachable!("a packed panel has places for its scales"),
            }
        }
        Ok(self.gpu.flush().await?)
    }

    /// Quantizes a float tensor on the device, panel by panel.
    async fn quantize(&mut self, info: &TensorInfo, weight: &Weight, format: Format4, staging: &Staging) -> Result<()> {
        self.gpu.write(self.buffers, staging.code_table, bytemuck::cast_slice(&quantize::code_words(format.code)));
        self.gpu.write(self.buffers, staging.code_map, bytemuck::cast_slice(&quantize::map_words()));
        let row_bytes = u64::from(weight.in_features) * info.dtype.bytes();
        for panel in &weight.panels {
            let start = u64::from(panel.first_row) * row_bytes;
            let bytes = start..start + u64::from(panel.rows) * row_bytes;
            self.quantize_panel(info, bytes, panel, format, staging).await?;
        }
        Ok(())
    }

    /// Quantizes the range `bytes` of a float tensor, which is that of `panel`.
    async fn quantize_panel(
        &mut self,
        info: &TensorInfo,
        bytes: Range<u64>,
        panel: &Panel,
        format: Format4,
        staging: &Staging,
    ) -> Result<()> {
        let width = info.dtype.bytes();
        let absmax = match panel.absmax {
            Some(absmax) if !format.double => absmax,
            _ => staging.absmax,
        };
        let length = bytes.end - bytes.start;
        for (i, (offset, length)) in pieces(length, staging.source.bytes.min(PIECE_BYTES)).enumerate() {
            let mut piece = vec![0; length as usize];
            read_piece(info, bytes.start + offset, &mut piece)?;
            piece.resize(piece.len().next_multiple_of(4), 0);
            self.gpu.write(self.buffers, staging.source, &piece);
            let mut rec = (self.recorder)();
            let piece = quantize::Piece {
                source: staging.source,
                from: info.dtype,
                elements: (length / width) as u32,
                first_block: (offset / width / format.code.block()) as u32,
            };
            quantize::blocks(&mut rec, piece, format.code, staging.code_table, panel.data, absmax);
            self.run(&rec, staging)?;
            self.drain(i).await?;
            self.advance(length);
        }
        if format.double {
            let mut rec = (self.recorder)();
            let count = (length / width).div_ceil(format.code.block()) as u32;
            quantize::absmax(&mut rec, absmax, count, staging.code_map, panel);
            self.run(&rec, staging)?;
        }
        Ok(self.gpu.flush().await?)
    }

    fn run(&mut self, rec: &Recorder, staging: &Staging) -> Result<()> {
        let list = self.gpu.prepare(&rec.commands, self.buffers, staging.uniform)?;
        Ok(self.gpu.run(&list, self.buffers)?)
    }
}

/// New weights as Hugging Face draws them: matrices from a normal distribution with the deviation of `initializer_range`,
/// gains of 1, biases of 0. A tensor's draws depend on the seed and its place alone.
///
/// # Errors
/// A failing device.
pub async fn initialize(gpu: &Gpu, buffers: &Buffers, network: &Network, seed: u64) -> Result<()> {
    let config = &network.config;
    for (item, (_, weight)) in network.weights().enumerate() {
        let draw = |index: u64| uniform(seed, Stream::WeightInit, item as u64, index);
        let mut first = 0;
        for panel in &weight.panels {
            let count = u64::from(panel.rows) * u64::from(weight.in_features);
            let value = |i: u64| config.initializer_range * normal(draw, i) as f32;
            let values: Vec<f32> = (first..first + count).map(value).collect();
            gpu.write(buffers, panel.data, bytemuck::cast_slice(&values));
            gpu.flush().await?;
            first += count;
        }
    }
    for (item, (spec, view)) in network.vectors().enumerate() {
        let draw = |index: u64| uniform(seed, Stream::WeightInit, (1 << 32) + item as u64, index);
        let values = match spec.kind {
            TensorKind::Bias(_) => vec![0.0; spec.elements()],
            TensorKind::Convolution | TensorKind::Linear(LinearPart::Convolution) => {
                (0..spec.elements() as u64).map(|i| config.initializer_range * normal(draw, i) as f32).collect()
            }
            // As transformers draws them: rates of decay up to 16.
            TensorKind::Linear(LinearPart::DecayLog) => {
                (0..spec.elements() as u64).map(|i| (0.01 + 15.99 * draw(i)).ln()).collect()
            }
            TensorKind::Linear(_) => vec![1.0; (view.bytes / 4) as usize],
            // The factor of a layer is there once for each column.
            _ => vec![1.0 - config.gain_offset; (view.bytes / 4) as usize],
        };
        gpu.write(buffers, view, bytemuck::cast_slice(&values));
    }
    write_tables(gpu, buffers, network);
    Ok(gpu.flush().await?)
}

/// Fills the base with random weights of a trained model's size, for measurements: uniform within a tenth, gains of 1.
///
/// # Errors
/// A failing device.
pub async fn fill_randomly(gpu: &Gpu, buffers: &Buffers, network: &Network, seed: u64) -> Result<()> {
    for (_, weight) in network.weights() {
        weight.fill_randomly(gpu, buffers, seed).await?;
    }
    for (_, view) in network.vectors() {
        gpu.write(buffers, view, bytemuck::cast_slice(&vec![1.0f32; (view.bytes / 4) as usize]));
    }
    write_tables(gpu, buffers, network);
    Ok(gpu.flush().await?)
}
