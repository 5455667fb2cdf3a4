//! What a training run needs on the device, planned from sizes alone: the same plan is the estimate and the allocation.

use crate::gpu::{
    Arena, AutotuneTable, Category, GpuError, Ledger, Matrix, MemoryPlan, PARAMS_STRIDE, ProblemSize, Recorder,
};
use crate::gpu::{Capabilities, Scratch, View, params_bytes, round_up};
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::network::activations::{Activations, Inputs, KeptAs, Phase, Recompute, scratch_bytes, through};
use crate::network::adapter::DeviceAdapter;
use crate::network::base::{self, BaseStorage, Network};
use crate::network::decoder::{Dropout, Pass};
use crate::network::load::Staging;
use crate::network::moments::{MomentStorage, Moments};
use crate::network::trained::Trained;
use crate::ops::{adamw, adamw8bit, cross_entropy, linear, weight_gradient};
use crate::quant::format::Float;

/// Row counts are rounded up to this, so that few shapes of list occur.
const ROW_CLASS: u32 = 32;
/// The same for rows with a label; also what keeps slices of per-row buffers aligned.
const LABEL_CLASS: u32 = 64;
/// Logits exist for as many rows at a time as fit here.
const LOGITS_BYTES: u64 = 32 << 20;
/// Steps whose results may be under way to the host while the next ones run.
pub const RESULTS_IN_FLIGHT: usize = 3;
/// State and loss in one buffer, at the alignment of a binding.
const METRICS_BYTES: u64 = 512;

/// The sizes and autotune that a plan follows from.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    pub base: BaseStorage,
    /// Rows of the largest micro-batch.
    pub max_rows: usize,
    /// Longest sequence, for the position table.
    pub max_positions: usize,
    pub recompute: RecomputePolicy,
    pub dropout: f32,
    /// How AdamW's moments are kept; None plans the forward pass and the loss alone.
    pub training: Option<MomentStorage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecomputePolicy {
    /// Keep as many layers as leave the kept activations within `kept_bytes` and the whole run within `total_bytes`.
    Auto { kept_bytes: u64, total_bytes: u64 },
    /// Keep the activations of this many layers, counted from the top.
    Keep(usize),
}

/// The head's part: rows with a label, their logits in chunks, and what is measured.
#[derive(Clone, Copy, Debug)]
pub struct HeadBuffers {
    pub label_rows: View,
    pub labels: View,
    /// Final hidden states of the rows with a label; chunk by chunk they become their gradients.
    gathered: Matrix,
    logits: Matrix,
    losses: View,
    /// f32: 1 / trained tokens of the whole optimizer step.
    pub scalars: View,
}

#[derive(Clone, Debug)]
pub struct OptimizerBuffers {
    pub hyper: View,
    /// [`adamw8bit::tables`], where any moments are in 8 bits.
    pub code_tables: Option<View>,
    partials: View,
    /// [`adamw::State`], then the sum of losses at the next binding's alignment.
    pub metrics: View,
    pub results: [View; RESULTS_IN_FLIGHT],
    pub dropout_seed: View,
}

impl OptimizerBuffers {
    fn state(&self) -> View {
        self.metrics.slice(0, 16)
    }

    fn total_loss(&self) -> View {
        self.metrics.slice(256, 16)
    }
}

/// A flat range of what is trained.
struct Range {
    params: View,
    grads: View,
    moments: Moments,
}

/// All that is trained: an adapter's segments, a base's tensors.
fn ranges(adapter: &DeviceAdapter, trained: Option<&Trained>) -> impl Iterator<Item = Range> {
    let of_adapter = adapter.segments.iter().filter_map(|segment| {
        let training = segment.training?;
        Some(Range { params: segment.params, grads: training.grads, moments: training.moments })
    });
    let of_base = trained.into_iter().flat_map(Trained::ranges);
    of_adapter.chain(of_base.map(|r| Range { params: r.params, grads: r.grads, moments: r.moments }))
}

/// Every buffer of a training run and how its lists are recorded.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    pub memory: MemoryPlan,
    pub capabilities: Capabilities,
    /// Neither the memory nor the results follow from these.
    pub autotune: AutotuneTable,
    pub network: Network,
    pub adapter: DeviceAdapter,
    /// Where the base itself is trained.
    pub trained: Option<Trained>,
    pub staging: Option<Staging>,
    pub inputs: Inputs,
    pub head: HeadBuffers,
    pub optimizer: OptimizerBuffers,
    pub recompute: Recompute,
    pub kept_as: KeptAs,
    /// Parameters of the pass, of the optimizer's list, and of the list that opens a step.
    pub uniforms: [View; 2],
    pub max_rows: u32,
    activations: Activations,
    unused: [View; 2],
    scratch: Scratch,
    dropout: f32,
}

impl TrainPlan {
    /// `stored` tells the type in which the files hold a tensor; activations are kept in f32.
    pub fn new(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: impl Fn(&str) -> Float,
        modules: &[LoraModule],
        settings: &PlanSettings,
    ) -> Self {
        Self::with_activations(capabilities, config, stored, modules, settings, KeptAs::F32)
    }

    /// As [`Self::new`], with activations kept as `kept_as`.
    pub fn with_activations(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: impl Fn(&str) -> Float,
        modules: &[LoraModule],
        settings: &PlanSettings,
        kept_as: KeptAs,
    ) -> Self {
        let keep = |kept_layers| {
            Self::with_recompute(capabilities, config, &stored, modules, settings, Recompute { kept_layers }, kept_as)
        };
        match settings.recompute {
            RecomputePolicy::Keep(layers) => keep(layers.min(config.num_layers)),
            RecomputePolicy::Auto { kept_bytes, total_bytes } => {
                // Bytes grow with the kept layers: the largest count within the budgets, by bisection.
                let fits = |plan: &Self| {
                    let ledger = plan.ledger();
                    ledger.get(Category::KeptActivations) <= kept_bytes && ledger.total() <= total_bytes
                };
                let all = keep(config.num_layers);
                if fits(&all) {
                    return all;
                }
                let (mut low, mut high) = (0, config.num_layers);
                while high - low > 1 {
                    let middle = (low + high) / 2;
                    if fits(&keep(middle)) { low = middle } else { high = middle }
                }
                keep(low)
            }
        }
    }

    fn with_recompute(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: &impl Fn(&str) -> Float,
        modules: &[LoraModule],
        settings: &PlanSettings,
        recompute: Recompute,
        kept_as: KeptAs,
    ) -> Self {
        let mut memory = MemoryPlan::for_bindings_of(capabilities.max_binding_bytes);
        let unused = [(); 2].map(|()| memory.alloc(Category::Workspace, "unused binding", 16));
        let max_binding = capabilities.max_binding_bytes.min(capabilities.max_buffer_bytes);
        let network = base::plan(&mut memory, config, settings.base, stored, settings.max_positions, max_binding);
        let mut arena = Arena::new(Category::Workspace);
        let adapter = DeviceAdapter::plan(&mut memory, modules, config, settings.training, max_binding);
        let max_rows = round_up(settings.max_rows as u32, ROW_CLASS);
        let trained = settings
            .training
            .filter(|_| settings.base == BaseStorage::Trained)
            .map(|moments| Trained::plan(&mut memory, &network, max_rows, moments));
        let inputs = Inputs::plan(&mut memory, config, max_rows);
        let dropout = settings.dropout;
        let activations = if settings.training.is_some() {
            Activations::plan_training(
                &mut memory,
                &mut arena,
                &network,
                &adapter,
                max_rows,
                recompute,
                kept_as,
                dropout > 0.0,
            )
        } else {
            Activations::plan_inference(&mut memory, &mut arena, &network, std::slice::from_ref(&adapter), max_rows)
        };
        let head = HeadBuffers::plan(&mut memory, &mut arena, config, max_rows, capabilities);
        let (panel, mut partials) =
            scratch_bytes(&network, std::slice::from_ref(&adapter), max_rows, head.logits.rows, &capabilities);
        if trained.is_some() {
            partials = partials.max(Trained::partials_bytes(&network));
        }
        let scratch = Scratch {
            weight_panel: memory.alloc(Category::Workspace, "decoded weight panel", panel),
            partials: memory.alloc(Category::Workspace, "LoRA gradient partial sums", partials),
        };
        let staging = Staging::plan(&mut memory, &mut arena, &network);
        let ranges: Vec<Range> = ranges(&adapter, trained.as_ref()).collect();
        let grads: Vec<View> = ranges.iter().map(|range| range.grads).collect();
        let coded = ranges.iter().any(|range| range.moments.storage() == MomentStorage::EightBit);
        let table_bytes = size_of_val(&adamw8bit::tables()) as u64;
        let optimizer = OptimizerBuffers {
            hyper: memory.alloc(Category::Uploads, "optimizer settings", 32),
            code_tables: coded.then(|| memory.alloc(Category::Optimizer, "8-bit code tables", table_bytes)),
            partials: memory.alloc(Category::Workspace, "gradient norm partial sums", adamw::partials_bytes(&grads)),
            metrics: memory.alloc(Category::Uploads, "step results", METRICS_BYTES),
            results: [(); RESULTS_IN_FLIGHT].map(|()| memory.alloc_readback("step results read-back", METRICS_BYTES)),
            dropout_seed: memory.alloc(Category::Uploads, "dropout seed", 16),
        };
        let none = View { bytes: 0, ..unused[0] };
        let mut plan = Self {
            memory,
            capabilities,
            autotune: AutotuneTable::default(),
            network,
            adapter,
            trained,
            staging,
            inputs,
            head,
            optimizer,
            recompute,
            kept_as,
            uniforms: [none; 2],
            max_rows,
            activations,
            unused,
            scratch,
            dropout,
        };
        // The longest list has all rows and a label in each; shorter ones have no more dispatches.
        let longest = plan.record_pass(max_rows, round_up(max_rows, LABEL_CLASS), settings.training.is_some());
        let pass_bytes = params_bytes(&longest.commands);
        let step_bytes = params_bytes(&plan.record_optimizer().commands) + PARAMS_STRIDE;
        plan.uniforms =
            [pass_bytes, step_bytes].map(|bytes| plan.memory.alloc(Category::Uploads, "dispatch parameters", bytes));
        plan
    }

    /// Bytes by category.
    pub fn ledger(&self) -> Ledger {
        self.memory.ledger()
    }

    /// # Errors
    /// A buffer that is longer than the adapter lets a kernel see at once; named before any weight is read.
    pub fn check_limits(&self) -> Result<(), GpuError> {
        let allowed = self.capabilities.max_binding_bytes.min(self.capabilities.max_buffer_bytes);
        match self.memory.specs().iter().find(|spec| spec.bytes > allowed) {
            Some(spec) => Err(GpuError::LimitTooSmall {
                what: format!("the buffer of `{}`", spec.label),
                limit: "binding",
                needed: spec.bytes,
                allowed,
            }),
            None => Ok(()),
        }
    }

    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.capabilities, self.unused[0], self.unused[1], self.scratch).with_autotune(&self.autotune)
    }

    /// What the largest micro-batch asks of the kernels that there are autotune between.
    pub fn problem_sizes(&self) -> Vec<ProblemSize> {
        self.record_pass(self.max_rows, self.max_rows, self.activations.workspace.backward.is_some()).problem_sizes
    }

    /// The class of list for a micro-batch: rows and capabilitiess rounded up.
    pub fn class(&self, rows: usize, labels: usize) -> (u32, u32) {
        let rows = round_up(rows as u32, ROW_CLASS).min(self.max_rows);
        (rows, round_up(labels as u32, LABEL_CLASS).min(round_up(self.max_rows, LABEL_CLASS)))
    }

    /// What opens an optimizer step: gradients and the sum of losses become zero.
    pub fn record_begin(&self) -> Recorder {
        let mut rec = self.recorder();
        for range in self.ranges() {
            rec.clear(range.grads);
        }
        rec.clear(self.optimizer.total_loss());
        rec
    }

    /// One micro-batch: forward, loss, and with `training` backward, adding to gradients and the sum of losses.
    pub fn record_pass(&self, rows: u32, labels: u32, training: bool) -> Recorder {
        let mut rec = self.recorder();
        let dropout = Dropout { p: self.dropout, seed: self.optimizer.dropout_seed };
        let pass = Pass {
            network: &self.network,
            adapter: Some(&self.adapter),
            trained: self.trained.as_ref(),
            inputs: &self.inputs,
            activations: &self.activations,
            rows,
            dropout: (training && self.dropout > 0.0).then_some(dropout),
            cache: None,
        };
        let hidden = pass.forward(&mut rec);
        let (total, trained) = (self.optimizer.total_loss(), self.trained.as_ref());
        self.head.record(&mut rec, &self.network, trained, hidden, labels, total, training);
        if let Some(ws) = self.activations.workspace.backward.filter(|_| training) {
            let d_norm = ws.d_norm.top(rows);
            rec.clear(d_norm.view);
            let gathered = self.head.gathered.top(labels);
            cross_entropy::scatter_rows(&mut rec, gathered, self.head.label_rows, d_norm);
            pass.backward(&mut rec);
        }
        rec
    }

    fn ranges(&self) -> impl Iterator<Item = Range> {
        ranges(&self.adapter, self.trained.as_ref())
    }

    /// Clip and AdamW over all that is trained.
    pub fn record_optimizer(&self) -> Recorder {
        let mut rec = self.recorder();
        let optimizer = &self.optimizer;
        let grads: Vec<View> = self.ranges().map(|range| range.grads).collect();
        if grads.is_empty() {
            return rec;
        }
        adamw::grad_norm(&mut rec, &grads, optimizer.hyper, optimizer.partials, optimizer.state());
        let tables = optimizer.code_tables.unwrap_or(self.unused[0]);
        for Range { params, grads, moments } in self.ranges() {
            moments.step(&mut rec, params, grads, tables, optimizer.state(), optimizer.hyper);
        }
        rec
    }

    /// The forward pass alone, whose logits of every row up to `rows` lie in the returned matrix, for comparisons.
    pub fn record_logits(&self, rows: u32) -> (Recorder, Matrix) {
        let mut rec = self.recorder();
        let pass = Pass {
            network: &self.network,
            adapter: Some(&self.adapter),
            trained: None,
            inputs: &self.inputs,
            activations: &self.activations,
            rows,
            dropout: None,
            cache: None,
        };
        let hidden = pass.forward(&mut rec);
        let logits = self.head.logits.top(rows);
        linear::forward(&mut rec, hidden, self.network.head(), None, logits, false);
        (rec, logits)
    }
}

impl HeadBuffers {
    fn plan(
        memory: &mut MemoryPlan,
        arena: &mut Arena,
        config: &ModelConfig,
        max_rows: u32,
        capabilities: Capabilities,
    ) -> Self {
        let rows = round_up(max_rows, LABEL_CLASS);
        let budget = LOGITS_BYTES.min(capabilities.max_binding_bytes);
        let fitting = budget / (4 * u64::from(round_up(config.vocab_size as u32, 4)));
        let chunk = (u32::try_from(fitting).unwrap_or(u32::MAX) / LABEL_CLASS * LABEL_CLASS).clamp(LABEL_CLASS, rows);
        let per_row = 4 * u64::from(rows);
        let (vocabulary, hidden) = (config.vocab_size as u32, config.hidden_size as u32);
        let while_gathered = through(Phase::GatherLabeled, Phase::ScatterLabeled);
        let at_logits = through(Phase::Logits, Phase::Logits);
        Self {
            logits: arena.matrix(memory, "logits", chunk, vocabulary, &[at_logits]),
            gathered: arena.matrix(memory, "rows with a label", rows, hidden, &[while_gathered]),
            label_rows: memory.alloc(Category::Uploads, "labeled rows", per_row),
            labels: memory.alloc(Category::Uploads, "labels", per_row),
            losses: memory.alloc(Category::Workspace, "losses", per_row),
            scalars: memory.alloc(Category::Uploads, "loss scale", 16),
        }
    }

    /// The rows with a label go through the head in chunks; with `gradient` each chunk of hidden states is replaced
    /// by its gradient before the next chunk's logits take the buffer.
    #[allow(clippy::too_many_arguments)]
    fn record(
        &self,
        rec: &mut Recorder,
        network: &Network,
        trained: Option<&Trained>,
        hidden: Matrix,
        labels: u32,
        total: View,
        gradient: bool,
    ) {
        cross_entropy::gather_rows(rec, hidden, self.label_rows, self.gathered.top(labels));
        let mut first = 0;
        while first < labels {
            let rows = self.logits.rows.min(labels - first);
            let (x, logits) = (rows_of(self.gathered, first, rows), self.logits.top(rows));
            let words = |view: View| view.slice(4 * u64::from(first), 4 * u64::from(rows));
            linear::forward(rec, x, network.head(), None, logits, false);
            let (labels, losses) = (words(self.labels), words(self.losses));
            cross_entropy::forward_backward(rec, logits, labels, self.scalars, losses, gradient);
            if let Some(trained) = trained.filter(|_| gradient) {
                weight_gradient::add(rec, logits, x, network.head(), |data| trained.gradient(data));
            }
            if gradient {
                linear::input_gradient(rec, logits, network.head(), None, x, false);
            }
            first += rows;
        }
        cross_entropy::sum_losses(rec, self.losses, labels, total);
    }
}

/// Rows `first .. first + rows` of a matrix.
fn rows_of(matrix: Matrix, first: u32, rows: u32) -> Matrix {
    let row_bytes = 4 * u64::from(matrix.ld);
    let view = matrix.view.slice(u64::from(first) * row_bytes, u64::from(rows) * row_bytes);
    Matrix { view, rows, ..matrix }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Cooperative;
    use crate::lora::config::LoraConfig;
    use crate::lora::targets;

    fn plan(capabilities: Capabilities, max_rows: usize, recompute: RecomputePolicy) -> TrainPlan {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_tied/config.json");
        let config = ModelConfig::from_file(&path).unwrap();
        let modules = targets::resolve(&LoraConfig::default(), &config).unwrap();
        let base = BaseStorage::AsStored;
        let training = Some(MomentStorage::F32);
        let settings = PlanSettings { base, max_rows, max_positions: 64, recompute, dropout: 0.0, training };
        TrainPlan::new(capabilities, &config, |_| Float::F32, &modules, &settings)
    }

    #[test]
    fn a_buffer_over_the_limit_is_named_before_anything_is_allocated() {
        let capabilities = Capabilities { max_binding_bytes: 1 << 20, ..Capabilities::BASELINE };
        plan(capabilities, 64, RecomputePolicy::Keep(9)).check_limits().unwrap();
        let message = plan(capabilities, 1 << 15, RecomputePolicy::Keep(9)).check_limits().unwrap_err().to_string();
        assert!(message.contains("1048576") && message.contains("⟨batch-size⟩"), "{message}");
    }

    #[test]
    fn no_batch_takes_more_dispatches_than_were_planned() {
        let cpu = Capabilities { cpu: true, ..Capabilities::BASELINE };
        let with_matrices = Capabilities { cooperative: Some(Cooperative::KNOWN[0]), ..Capabilities::BASELINE };
        for capabilities in [Capabilities::BASELINE, cpu, Capabilities { subgroup_size: 8, ..cpu }, with_matrices] {
            for max_rows in [1, 96, 160, 416] {
                let plan = plan(capabilities, max_rows, RecomputePolicy::Keep(1));
                let classes = (0..=max_rows).step_by(8).flat_map(|rows| [(rows, 1), (rows, rows / 2), (rows, rows)]);
                for (rows, labels) in classes.map(|(rows, labels)| plan.class(rows.max(1), labels.max(1))) {
                    let bytes = params_bytes(&plan.record_pass(rows, labels, true).commands);
                    assert!(
                        bytes <= plan.uniforms[0].bytes,
                        "{rows} rows, {labels} labels of {max_rows}: {capabilities:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn recomputation_is_chosen_by_the_bytes_that_it_saves() {
        let bytes = |plan: &TrainPlan| plan.ledger().get(Category::KeptActivations);
        let kept = [0, 1, 2].map(|layers| plan(Capabilities::BASELINE, 256, RecomputePolicy::Keep(layers)));
        assert!(bytes(&kept[0]) < bytes(&kept[1]) && bytes(&kept[1]) < bytes(&kept[2]));
        let auto = |kept_bytes| {
            plan(Capabilities::BASELINE, 256, RecomputePolicy::Auto { kept_bytes, total_bytes: u64::MAX })
                .recompute
                .kept_layers
        };
        assert_eq!([0, 1, 2].map(|i| auto(bytes(&kept[i]))), [0, 1, 2]);
        assert_eq!(auto(bytes(&kept[2]) - 1), 1);
    }
}
