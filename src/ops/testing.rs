//! The common part of the operations' tests: opened devices, uploads with poisoned padding, and comparison with the twins.
//!
//! `LORAINE_ADAPTER` chooses the adapter, `LORAINE_CHECKED=1` compiles the shaders with the driver's runtime checks.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gpu::{Buffers, Capabilities, Category, Gpu, GpuOptions, Matrix, MatrixUnits, Recorder, Scratch, View};
use crate::ops::VariantFamily;
use crate::ops::experiment::Experiment;
pub(crate) use crate::ops::experiment::Stored;
use crate::random::{Stream, uniform};

/// Tests that run at once have devices of their own as far as these go: a software adapter works on one thread for each device.
static GPUS: [(OnceLock<Gpu>, AtomicUsize); 4] = [const { (OnceLock::new(), AtomicUsize::new(0)) }; 4];

/// The place of a thread's device in [`GPUS`], until the thread ends.
struct Lease(usize);

impl Lease {
    /// Takes the device that the fewest threads have.
    fn take() -> Self {
        let least = (0..GPUS.len()).min_by_key(|at| GPUS[*at].1.load(Ordering::Relaxed)).unwrap_or(0);
        GPUS[least].1.fetch_add(1, Ordering::Relaxed);
        Self(least)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        GPUS[self.0].1.fetch_sub(1, Ordering::Relaxed);
    }
}

thread_local!(static LEASE: Lease = Lease::take());

/// The device of this thread's test.
pub(crate) fn gpu() -> &'static Gpu {
    GPUS[LEASE.with(|lease| lease.0)].0.get_or_init(|| {
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

/// One experiment with its device and its results.
pub(crate) struct Lab {
    experiment: Experiment,
    pub capabilities: Capabilities,
    buffers: Buffers,
    unused: [View; 2],
    scratch: Scratch,
}

impl Deref for Lab {
    type Target = Experiment;

    fn deref(&self) -> &Experiment {
        &self.experiment
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Experiment {
        &mut self.experiment
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let mut experiment = Experiment::default();
        let plan = &mut experiment.plan;
        let unused = [(); 2].map(|()| plan.alloc(Category::Workspace, "unused", 16));
        let scratch = Scratch {
            weight_panel: plan.alloc(Category::Workspace, "weight panel", 64 << 10),
            partials: plan.alloc(Category::Workspace, "partials", 4 << 20),
        };
        Self { experiment, capabilities: gpu().capabilities, buffers: Buffers::default(), unused, scratch }
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
        self.scratch.weight_panel = self.experiment.plan.alloc(Category::Workspace, "weight panel", bytes);
    }

    /// Positions of packed sequences of drawn lengths up to `longest`.
    pub(crate) fn positions(&mut self, rows: usize, longest: usize) -> Vec<u32> {
        let mut positions: Vec<u32> = Vec::new();
        while positions.len() < rows {
            let length = 1 + self.index(longest);
            positions.extend(0..length.min(rows - positions.len()) as u32);
        }
        positions
    }

    /// 16-bit values, two in a word.
    pub(crate) fn halves(&mut self, values: impl Iterator<Item = u16>) -> View {
        let values: Vec<u16> = values.collect();
        let word = |pair: &[u16]| u32::from(pair[0]) | u32::from(*pair.get(1).unwrap_or(&0)) << 16;
        self.words(&values.chunks(2).map(word).collect::<Vec<_>>())
    }

    pub(crate) fn recorder(&self) -> Recorder {
        Recorder::new(self.capabilities, self.unused[0], self.unused[1], self.scratch)
    }

    /// Allocates, uploads and runs; panics on any device error.
    pub(crate) fn run(&mut self, rec: &Recorder) {
        let gpu = gpu();
        let uniform = self.plan.alloc(Category::Workspace, "params", crate::gpu::params_bytes(&rec.commands));
        pollster::block_on(gpu.allocate(&self.experiment.plan, &mut self.buffers)).expect("allocate");
        for (view, data) in self.experiment.uploads.drain(..) {
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
