//! The data of one experiment: planned buffers with drawn values to upload, and what a twin needs of them. The operations' tests and the
//! doctor use it.

use crate::gpu::{Category, Matrix, MemoryPlan, View};
use crate::ops::weight::{Panel, Weight, twin};
use crate::quant::format::{BlockCode, Format4, Storage};
use crate::quant::{self, Scales};
use crate::random::{Stream, uniform};

/// A memory plan, and the data to upload into it.
#[derive(Default)]
pub(crate) struct Experiment {
    pub plan: MemoryPlan,
    pub uploads: Vec<(View, Vec<u8>)>,
    draws: u64,
}

impl Experiment {
    /// Standard normal draws, rounded to f32 so that twin and device start from the same values.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f64> {
        let mut draw = || {
            self.draws += 1;
            f64::from(uniform(1, Stream::Sampling, 0, self.draws))
        };
        (0..count)
            .map(|_| {
                let radius = (-2.0 * (1.0 - draw()).ln()).sqrt();
                f64::from((radius * (2.0 * std::f64::consts::PI * draw()).cos()) as f32)
            })
            .collect()
    }

    /// An integer in `0..below`.
    pub(crate) fn index(&mut self, below: usize) -> usize {
        self.draws += 1;
        (uniform(1, Stream::Sampling, 1, self.draws) * below as f32) as usize
    }

    pub(crate) fn vector(&mut self, values: &[f64]) -> View {
        let view = self.plan.alloc(Category::Workspace, "vector", 4 * values.len() as u64);
        let data: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        self.uploads.push((view, bytemuck::cast_slice(&data).to_vec()));
        view
    }

    /// Uploads into a view that is planned already.
    pub(crate) fn fill(&mut self, view: View, values: &[u32]) {
        self.uploads.push((view, bytemuck::cast_slice(values).to_vec()));
    }

    pub(crate) fn words(&mut self, values: &[u32]) -> View {
        let view = self.plan.alloc(Category::Workspace, "words", 4 * values.len() as u64);
        self.uploads.push((view, bytemuck::cast_slice(values).to_vec()));
        view
    }

    /// A matrix whose padding is NaN, so that a kernel that uses it is seen.
    pub(crate) fn matrix(&mut self, rows: usize, cols: usize, values: &[f64]) -> Matrix {
        assert_eq!(values.len(), rows * cols);
        let matrix = self.plan.matrix(Category::Workspace, "matrix", rows as u32, cols as u32);
        self.fill_matrix(matrix, values);
        matrix
    }

    /// Uploads a matrix that is planned already, with NaN as its padding.
    pub(crate) fn fill_matrix(&mut self, matrix: Matrix, values: &[f64]) {
        let Matrix { rows, cols, ld, view } = matrix;
        let mut data = vec![f32::NAN; (rows * ld) as usize];
        for (row, values) in data.chunks_mut(ld as usize).zip(values.chunks(cols.max(1) as usize)) {
            row.iter_mut().zip(values).for_each(|(to, v)| *to = *v as f32);
        }
        self.uploads.push((view, bytemuck::cast_slice(&data).to_vec()));
    }

    /// A matrix of NaN, to be written by the kernel.
    pub(crate) fn empty(&mut self, rows: usize, cols: usize) -> Matrix {
        self.matrix(rows, cols, &vec![f64::NAN; rows * cols])
    }

    /// A weight in `panels` panels of whole rows, and the values that it holds.
    pub(crate) fn weight(
        &mut self,
        storage: Storage,
        [rows, cols]: [usize; 2],
        values: &[f64],
        panels: usize,
    ) -> (Weight, Vec<f64>) {
        let panel_rows = rows.div_ceil(panels).next_multiple_of(64);
        let limit = storage.bytes((panel_rows * cols) as u64).0;
        let mut weight = Weight::plan(&mut self.plan, "weight", storage, [rows as u32, cols as u32], false, limit);
        let mut held = Vec::new();
        for (panel, values) in weight.panels.iter_mut().zip(values.chunks(panel_rows * cols)) {
            let stored = Stored::of(storage, values);
            panel.data = self.words(&stored.data);
            panel.absmax = panel.absmax.map(|_| self.words(&stored.absmax));
            panel.nested = panel.nested.map(|_| self.words(&stored.nested));
            held.extend(stored.held);
        }
        (weight, held)
    }

    /// Weights `[rows, cols]` of a layer's experts, one behind the other, and the values that they hold.
    pub(crate) fn expert_weights(
        &mut self,
        storage: Storage,
        experts: usize,
        [rows, cols]: [usize; 2],
    ) -> (Vec<Weight>, Vec<Vec<f64>>) {
        let scale = 1.0 / (cols as f64).sqrt();
        let (mut all, mut held) = (Vec::new(), Vec::new());
        let stored: Vec<Stored> = (0..experts)
            .map(|_| Stored::of(storage, &self.normal(rows * cols).iter().map(|v| scale * v).collect::<Vec<_>>()))
            .collect();
        let mut places = |of: fn(&Stored) -> &Vec<u32>| {
            let bytes = (4 * of(&stored[0]).len() as u64).next_multiple_of(256);
            let whole = (bytes > 0).then(|| self.plan.alloc(Category::Workspace, "experts", bytes * experts as u64))?;
            let place = |i: usize| whole.slice(bytes * i as u64, bytes);
            let places: Vec<_> = (0..experts).map(place).collect();
            places.iter().zip(&stored).for_each(|(view, stored)| self.fill(*view, of(stored)));
            Some(places)
        };
        let (data, absmax, nested) = (places(|s| &s.data), places(|s| &s.absmax), places(|s| &s.nested));
        for (i, stored) in stored.into_iter().enumerate() {
            let [data, absmax, nested] =
                [&data, &absmax, &nested].map(|places| places.as_ref().map(|places| places[i]));
            let panel = Panel { first_row: 0, rows: rows as u32, data: data.expect("values"), absmax, nested };
            let (out_features, in_features) = (rows as u32, cols as u32);
            all.push(Weight { storage, out_features, in_features, panels: vec![panel], bias: None });
            held.push(stored.held);
        }
        (all, held)
    }
}

/// A matrix as the device stores it, and its values after rounding.
pub(crate) struct Stored {
    pub data: Vec<u32>,
    pub absmax: Vec<u32>,
    pub nested: Vec<u32>,
    pub held: Vec<f64>,
}

impl Stored {
    pub(crate) fn of(storage: Storage, values: &[f64]) -> Self {
        let (absmax, nested) = (Vec::new(), Vec::new());
        let (code, double) = match storage {
            Storage::Float(float) => {
                let held = values.iter().map(|v| twin::rounded(float, *v)).collect();
                return Self { data: twin::words(float, values), absmax, nested, held };
            }
            Storage::Quantized(Format4 { code, double }) => (code, double),
            Storage::Blocks(code) => return Self::in_blocks(code, values),
        };
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let quantized = quant::quantize(&values, code, double);
        let held = quant::dequantize(&quantized, code, values.len()).iter().map(|v| f64::from(*v)).collect();
        let data = byte_words(&quantized.packed);
        match &quantized.scales {
            Scales::Plain(absmax) => Self { data, absmax: absmax.iter().map(|v| v.to_bits()).collect(), nested, held },
            Scales::Nested { codes, absmax, offset } => {
                let nested = quant::dynamic_map().iter().chain([offset]).chain(absmax);
                Self { data, absmax: byte_words(codes), nested: nested.map(|v| v.to_bits()).collect(), held }
            }
        }
    }
}

impl Stored {
    /// The nearest codes between the least and the largest value of each block.
    fn in_blocks(code: BlockCode, values: &[f64]) -> Self {
        let bits = code.bits() as usize;
        // The codes of a file's blocks of 8 bits with a minimum have 5.
        let levels = if bits == 8 && code.has_minimum() { 5 } else { bits };
        let most = ((1u32 << (levels - usize::from(!code.has_minimum()))) - 1) as f32;
        let lowest = if code.has_minimum() { 0.0 } else { -most };
        let mut packed = vec![0u8; code.code_bytes(values.len() as u64) as usize];
        let mut of_blocks = Vec::new();
        for (at, value) in values.iter().enumerate() {
            if at % code.block() as usize == 0 {
                let block = &values[at..values.len().min(at + code.block() as usize)];
                let least = block.iter().fold(0.0, |least: f64, v| least.min(*v)) as f32;
                let largest = block.iter().fold(0.0, |largest: f64, v| largest.max(*v)) as f32;
                let span = if code.has_minimum() { largest - least } else { largest.max(-least) };
                // As few bits as in files, so that the products with codes are exact.
                let scale = f32::from_bits((span / most).max(1e-6).to_bits() & !0x1fff);
                of_blocks.extend_from_slice(&[scale, -least][..code.of_block() as usize]);
            }
            let own = &of_blocks[of_blocks.len() - code.of_block() as usize..];
            let minimum = if code.has_minimum() { own[1] } else { 0.0 };
            let index = ((*value as f32 + minimum) / own[0]).round().clamp(lowest, most);
            let byte = index as i8 as u8 & (0xff >> (8 - bits));
            packed[at * bits / 8] |= byte << (at * bits % 8);
        }
        let quantized = quant::Quantized { packed, scales: Scales::Plain(of_blocks.clone()) };
        let held = quant::dequantize_blocks(&quantized, code, values.len()).iter().map(|v| f64::from(*v)).collect();
        let absmax = of_blocks.iter().map(|v| v.to_bits()).collect();
        Self { data: byte_words(&quantized.packed), absmax, nested: Vec::new(), held }
    }
}

/// Bytes as words, the last one padded with zeros.
fn byte_words(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}
