//! What the whole-run tests share: fixtures, the references that PyTorch wrote, and comparison.

pub mod cli;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use loraine::data::Example;
use loraine::data::batches::MicroBatch;
use loraine::gpu::{Gpu, GpuOptions, MatrixUnits, Tune, TuneOptions};
use loraine::lora::adapter_file;
use loraine::lora::factors::{AdapterTensors, Factor, ModuleFactors};
use loraine::lora::targets::LoraModule;
use loraine::model::config::ModelConfig;
use loraine::model::source::Source;
use loraine::network::base::BaseStorage;
use loraine::network::moments::{MomentStorage, Shard};
use loraine::ops::distillation::Distillation;
use loraine::train::engine::Engine;
use loraine::train::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use safetensors::SafeTensors;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The factor by which `make soak` makes faults more frequent.
pub fn soak() -> u64 {
    std::env::var("LORAINE_SOAK").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// A path under the data that lies beside the checkout; None, with a printed reason, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if full.exists() {
        return Some(full);
    }
    eprintln!("skipped: {} is not there", full.display());
    None
}

pub fn gpu() -> Gpu {
    // In f32 unless asked: what the factors in f16 of matrix units cost is bounded by the tests of their kernel.
    let matrix_units = match std::env::var("LORAINE_MATRIX_UNITS").as_deref() {
        Ok("on") => MatrixUnits::On,
        _ => MatrixUnits::Off,
    };
    let adapter = std::env::var("LORAINE_ADAPTER").ok();
    let tuning = TuneOptions { tune: Tune::Off, cache: None };
    let options = GpuOptions { adapter, matrix_units, tuning, ..Default::default() };
    let mut gpu = pollster::block_on(Gpu::open(&options)).expect("the tests need an adapter; `make test` installs one");
    // A software adapter taken for a GPU: whole runs by the kernels that real ones take.
    if std::env::var("LORAINE_FORMS").as_deref() == Ok("gpu") {
        take_for_gpu(&mut gpu);
    }
    gpu
}

pub fn take_for_gpu(gpu: &mut Gpu) {
    (gpu.capabilities.cpu, gpu.capabilities.subgroup_size) = (false, 0);
}

/// A safetensors file in memory.
pub struct Reference(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Reference {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let words = view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            let values = match view.dtype() {
                safetensors::Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                safetensors::Dtype::I32 => words.map(|b| i32::from_le_bytes(b) as f32).collect(),
                _ => view.data().iter().map(|b| f32::from(*b)).collect(),
            };
            (name, (view.shape().to_vec(), values))
        });
        Self(tensors.collect())
    }

    pub fn get(&self, name: &str) -> &[f32] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name} in {:?}", self.0.keys())).1
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.0[name].0
    }

    pub fn find(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(|(_, values)| values.as_slice())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name).iter().map(|v| *v as u32).collect()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.get(name).iter().map(|v| *v as u8).collect()
    }
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a JSON file")).expect("JSON")
}

pub fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// `||got - want|| / ||want||`.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |v: f64| v * v;
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let norm: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    (difference / norm.max(1e-30)).sqrt()
}

pub fn assert_close(what: &str, got: &[f32], want: &[f32], bound: f64) {
    let error = relative_error(got, want);
    assert!(error < bound, "{what}: relative error {error:.2e}, allowed {bound:.0e}");
}

/// A training engine over a model directory, with its adapter written.
pub fn open_engine(
    model: &Path,
    base: BaseStorage,
    modules: &[LoraModule],
    tensors: &AdapterTensors,
    max_rows: usize,
    keep_layers: usize,
) -> Engine {
    open_source(&Source::open(model).expect("a model"), base, modules, tensors, max_rows, keep_layers)
}

/// As [`open_engine`], of a model whose configuration may have been changed after it was read.
pub fn open_source(
    source: &Source,
    base: BaseStorage,
    modules: &[LoraModule],
    tensors: &AdapterTensors,
    max_rows: usize,
    keep_layers: usize,
) -> Engine {
    open_planned(source, base, (modules, tensors), (max_rows, keep_layers), None)
}

/// A student of a teacher, or the same model without one.
pub fn open_student(
    model: &Path,
    modules: &[LoraModule],
    tensors: &AdapterTensors,
    max_rows: usize,
    distillation: Option<Distillation>,
) -> Engine {
    let source = Source::open(model).expect("a model");
    open_planned(&source, BaseStorage::AsStored, (modules, tensors), (max_rows, 1), distillation)
}

fn open_planned(
    source: &Source,
    base: BaseStorage,
    (modules, tensors): (&[LoraModule], &AdapterTensors),
    (max_rows, keep_layers): (usize, usize),
    distillation: Option<Distillation>,
) -> Engine {
    let gpu = gpu();
    let settings = PlanSettings {
        base,
        max_rows,
        max_positions: max_rows,
        recompute: RecomputePolicy::Keep(keep_layers),
        dropout: 0.0,
        loraplus: false,
        neftune_alpha: 0.0,
        training: Some(MomentStorage::F32),
        distillation,
        shard: Shard::default(),
    };
    let stored = |name: &str| source.stored(name);
    let plan = TrainPlan::new(gpu.capabilities, &source.config, stored, modules, &settings);
    let engine = pollster::block_on(Engine::open(gpu, plan, source, |_, _| {})).expect("engine");
    assert_eq!(engine.plan.ledger(), *engine.buffers.ledger(), "planned and allocated bytes");
    engine.write_adapter(tensors);
    engine
}

/// Every token but the first is trained on.
pub fn example(ids: Vec<u32>) -> Example {
    Example::new(ids.clone(), vec![true; ids.len()])
}

/// All rows of one sequence, the last one (which has no target) included.
pub fn whole_sequence(ids: &[u32]) -> MicroBatch {
    let rows = ids.len() as u32;
    MicroBatch {
        tokens: ids.to_vec(),
        positions: (0..rows).collect(),
        segment_start: vec![0; ids.len()],
        segment_end: vec![rows; ids.len()],
        ..MicroBatch::default()
    }
}

/// The same modules with B zero: the base alone.
pub fn without_effect(tensors: &AdapterTensors) -> AdapterTensors {
    let zero_b = |module: &ModuleFactors| {
        let mut module = module.clone();
        module[Factor::B].fill(0.0);
        module
    };
    AdapterTensors { modules: tensors.modules.iter().map(zero_b).collect() }
}

pub fn adapter(dir: &Path, config: &ModelConfig) -> (Vec<LoraModule>, AdapterTensors) {
    let adapter = adapter_file::load(dir, config).expect("an adapter");
    (adapter.modules, adapter.tensors)
}

/// Gradients or factors against reference tensors named `prefix` + PEFT's name.
pub fn assert_factors(
    what: &str,
    got: &AdapterTensors,
    modules: &[LoraModule],
    reference: &Reference,
    prefix: &str,
    suffix: &str,
    bound: f64,
) {
    for (name, _, values) in adapter_file::file_tensors(modules, got) {
        let exact = format!("{prefix}{name}");
        let name = match reference.find(&exact) {
            Some(_) => exact,
            None => format!("{prefix}{}{suffix}", name.trim_end_matches(".weight")),
        };
        assert_close(&format!("{what}: {name}"), &values, reference.get(&name), bound);
    }
}
