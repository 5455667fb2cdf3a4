//! The common part of the operations' tests: one opened device, uploads with poisoned padding, and comparison with the twins.
//!
//! `LORAINE_ADAPTER` chooses the adapter, `LORAINE_CHECKED=1` compiles the shaders with the driver's runtime checks.

use std::sync::OnceLock;

use crate::gpu::{
    Buffers, Capabilities, Category, Gpu, GpuOptions, Matrix, MatrixUnits, MemoryPlan, Recorder, Scratch, View,
};
use crate::ops::VariantFamily;
use crate::ops::weight::{Weight, twin};
use crate::quant::format::{Format4, Storage};
use crate::quant::{self, Scales};
use crate::random::{Stream, uniform};

static GPU: OnceLock<Gpu> = OnceLock::new();

/// The device that all tests of this process share.
pub(crate) fn gpu() -> &'static Gpu {
    GPU.get_or_init(|| {
        let options = GpuOptions {
            adapter: std::env::var("LORAINE_ADAPTER").ok(),
            checked_shaders: std::env::var_os("LORAINE_CHECKED").is_some(),
            matrix_units: MatrixUnits::On,
            ..Default::default()
        };
        let gpu = pollster::block_on(Gpu::open(&options)).expect("the tests need an adapter; `make test` installs one");
        eprintln!("adapter: {} ({})", gpu.adapter.name, gpu.adapter.driver_info);
        gpu
    })
}

/// The variant families that this adapter can run.
pub(crate) fn families() -> Vec<VariantFamily> {
    if gpu().capabilities.subgroup_size == VariantFamily::LANES {
        return vec![VariantFamily::Tiles, VariantFamily::Lanes, VariantFamily::Broadcast];
    }
    eprintln!(
        "skipped: the variants that exchange values, since this adapter has no subgroups of {}",
        VariantFamily::LANES
    );
    vec![VariantFamily::Tiles, VariantFamily::Lanes]
}

/// Named shapes, and a few drawn at random; the seed is fixed so that a failure repeats.
pub(crate) fn shapes(named: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let draw = |i: u64| 1 + (uniform(99, Stream::Split, named.len() as u64, i) * 90.0) as usize;
    named.iter().copied().chain((0..3).map(|i| (draw(2 * i), draw(2 * i + 1)))).collect()
}

/// One experiment: a memory plan, the data to upload, and the results.
pub(crate) struct Lab {
    pub plan: MemoryPlan,
    pub capabilities: Capabilities,
    uploads: Vec<(View, Vec<u8>)>,
    buffers: Buffers,
    unused: [View; 2],
    scratch: Scratch,
    draws: u64,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let mut plan = MemoryPlan::new();
        let unused = [(); 2].map(|()| plan.alloc(Category::Workspace, "unused", 16));
        let scratch = Scratch {
            weight_panel: plan.alloc(Category::Workspace, "weight panel", 64 << 10),
            partials: plan.alloc(Category::Workspace, "partials", 4 << 20),
        };
        Self {
            plan,
            capabilities: gpu().capabilities,
            uploads: Vec::new(),
            buffers: Buffers::default(),
            unused,
            scratch,
            draws: 0,
        }
    }

    /// The variants for software adapters (true) or for real GPUs (false), whatever this adapter is.
    pub(crate) fn for_cpu(cpu: bool) -> Self {
        let mut lab = Self::new();
        lab.capabilities.cpu = cpu;
        lab.capabilities.cooperative = None;
        lab
    }

    /// The variants of one family of [`families`].
    pub(crate) fn for_family(family: VariantFamily) -> Self {
        let mut lab = Self::for_cpu(family != VariantFamily::Tiles);
        lab.capabilities.subgroup_size = if family == VariantFamily::Broadcast { VariantFamily::LANES } else { 0 };
        lab
    }

    /// Scratch for weight panels beyond the small one that [`Lab::new`] plans.
    pub(crate) fn reserve_panel(&mut self, bytes: u64) {
        self.scratch.weight_panel = self.plan.alloc(Category::Workspace, "weight panel", bytes);
    }

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

    /// 16-bit values, two in a word.
    pub(crate) fn halves(&mut self, values: impl Iterator<Item = u16>) -> View {
        let values: Vec<u16> = values.collect();
        let word = |pair: &[u16]| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16;
        self.words(&values.chunks(2).map(word).collect::<Vec<_>>())
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

    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(self.capabilities, self.unused[0], self.unused[1], self.scratch)
    }

    /// Allocates, uploads and runs; panics on any device error.
    pub(crate) fn run(&mut self, rec: &Recorder) {
        let gpu = gpu();
        let uniform = self.plan.alloc(Category::Workspace, "params", crate::gpu::params_bytes(&rec.commands));
        pollster::block_on(gpu.allocate(&self.plan, &mut self.buffers)).expect("allocate");
        for (view, data) in self.uploads.drain(..) {
            gpu.write(&self.buffers, view, &data);
        }
        let list = gpu.prepare(&rec.commands, &self.buffers, uniform).expect("prepare");
        gpu.run(&list, &mut self.buffers).expect("run");
        gpu.wait().expect("wait");
    }

    pub(crate) fn read_vector(&self, view: View) -> Vec<f32> {
        pollster::block_on(gpu().read_f32(&self.buffers, view)).expect("read")
    }

    pub(crate) fn read_words(&self, view: View) -> Vec<u32> {
        self.read_vector(view).into_iter().map(f32::to_bits).collect()
    }

    /// The matrix without its padding.
    pub(crate) fn read(&self, matrix: Matrix) -> Vec<f32> {
        let rows = self.read_vector(matrix.view);
        rows.chunks(matrix.ld as usize)
            .take(matrix.rows as usize)
            .flat_map(|row| row[..matrix.cols as usize].to_vec())
            .collect()
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

/// Bytes as words, the last one padded with zeros.
fn byte_words(bytes: &[u8]) -> Vec<u32> {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    bytes.chunks(4).map(word).collect()
}

/// `||got - want|| / ||want||` must stay under `bound`, and no element may be off alone.
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let scale = norm(&mut want.iter().copied()).max(1e-12);
    let error = norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w)) / scale;
    if error.is_nan() || error >= bound {
        let worst = got.iter().zip(want).position(|(g, w)| g.is_nan() || (f64::from(*g) - w).abs() > bound * scale);
        let at = worst.map(|i| format!("; element {i} is {} instead of {}", got[i], want[i])).unwrap_or_default();
        panic!("{what}: relative error {error:.2e} over {bound:.0e}{at}");
    }
}

/// `gradient` against central differences of `f` at `x`, in f64.
pub(crate) fn assert_gradient(x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len());
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + STEP;
        let up = f(&moved);
        moved[i] = x[i] - STEP;
        let slope = (up - f(&moved)) / (2.0 * STEP);
        moved[i] = x[i];
        assert!(
            (slope - gradient[i]).abs() < 1e-6 * (1.0 + slope.abs()),
            "element {i}: {} against {slope}",
            gradient[i]
        );
    }
}
