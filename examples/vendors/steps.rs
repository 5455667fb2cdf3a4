//! The kernels of training steps on a GPU, as their plans record them.

use std::collections::HashSet;
use std::error::Error;

use loraine::gpu::{AutotuneTable, Command, Kernel, Recorder};
use loraine::lora::targets;
use loraine::memory::ASSUMED_CAPABILITIES;
use loraine::model::shapes;
use loraine::network::moments::Shard;
use loraine::ops;
use loraine::ops::glu::Activation;
use loraine::ops::linear::Variant;
use loraine::quant::format::Float;
use loraine::train::budget::PlanRequest;
use loraine::train::plan::TrainPlan;
use loraine::train::settings::{ActivationsChoice, Method, RunSettings};

/// Rows of the micro-batch that is planned.
const ROWS: usize = 512;

/// Every kernel that some step uses: all training methods, head sizes, types of weights and sizes of tiles.
pub(crate) fn kernels() -> Result<Vec<Kernel>, Box<dyn Error>> {
    let mut found = Found::default();
    for (model, head_dim) in
        [("smollm2-135m", 64), ("llama-3.2-1b", 80), ("llama-3.2-1b", 96), ("qwen3-0.6b", 128), ("llama-3.2-1b", 256)]
    {
        for method in [Method::Qlora, Method::Lora, Method::Full] {
            let mut config = shapes::by_name(model)?;
            config.head_dim = head_dim;
            config.num_layers = 2;
            if head_dim == 256 {
                config.activation = Activation::GeluTanh;
            }
            let float = match head_dim {
                64 => Float::F32,
                80 => Float::F16,
                _ => Float::Bf16,
            };
            let activations = if head_dim == 128 { ActivationsChoice::Bf16 } else { ActivationsChoice::F32 };
            let settings = RunSettings { method, activations, ..RunSettings::default() };
            let modules = match method {
                Method::Full => Vec::new(),
                Method::Lora | Method::Qlora => targets::resolve(&settings.lora_config(), &config)?,
            };
            let request = PlanRequest {
                settings: &settings,
                config: &config,
                modules: &modules,
                stored: &|_| float,
                max_rows: ROWS,
                max_positions: ROWS,
                distillation: None,
                capabilities: ASSUMED_CAPABILITIES,
                shard: Shard::default(),
            };
            found.record(&mut request.plan_within_budget()?);
        }
    }
    Ok(found.sorted())
}

/// Every kernel in every variant that a GPU without cooperative matrices may take.
pub(crate) fn all_for_gpus() -> Vec<Kernel> {
    let of_software = |name: &str| {
        let parts =
            ["_lanes", "linear_broadcast", "linear_rows", "_panel", "weight_gradient_rows", "linear_cooperative"];
        parts.iter().any(|part| name.contains(part)) || name == "linear_few_rows"
    };
    let mut found = Found::default();
    ops::kernels().into_iter().filter(|kernel| !of_software(kernel.name)).for_each(|kernel| found.add(kernel));
    found.sorted()
}

#[derive(Default)]
struct Found {
    kernels: Vec<Kernel>,
    known: HashSet<Kernel>,
}

impl Found {
    fn add(&mut self, kernel: Kernel) {
        if self.known.insert(kernel.clone()) {
            self.kernels.push(kernel);
        }
    }

    /// Adds a plan's kernels, once for each size of tiles as the one that was measured to be the fastest.
    fn record(&mut self, plan: &mut TrainPlan) {
        let problems = plan.problem_sizes();
        let variants = problems.iter().map(|problem| Variant::all(&ASSUMED_CAPABILITIES, problem));
        let mut names: Vec<_> = variants.flatten().map(Variant::name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let mut table = AutotuneTable::default();
            problems.iter().for_each(|problem| table.insert(problem.class(), name));
            plan.shared.autotune = table;
            let rows = plan.max_rows;
            [plan.record_begin(), plan.record_pass(rows, rows, true), plan.record_optimizer()]
                .iter()
                .for_each(|rec| self.list(rec));
        }
    }

    fn list(&mut self, rec: &Recorder) {
        for command in &rec.commands {
            if let Command::Dispatch(dispatch) = command {
                self.add((*dispatch.kernel).clone());
            }
        }
    }

    fn sorted(mut self) -> Vec<Kernel> {
        self.kernels.sort_by_cached_key(|kernel| (kernel.name, kernel.wgsl()));
        self.kernels
    }
}
