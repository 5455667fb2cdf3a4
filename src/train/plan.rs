//! The plan of a training run on the device, made from sizes alone: the same plan is the estimate and the allocation.

use super::head::{HeadBuffers, HeadPass, LABEL_CLASS};
use super::optimizer::{OptimizerBuffers, OptimizerPart};
use super::parameters::TrainedParameters;
use crate::gpu::{
    Capabilities, Category, GpuError, Ledger, Matrix, PARAMS_STRIDE, ProblemSize, Recorder, params_bytes, round_up,
};
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::network::activations::{ActivationFormat, Activations, Inputs, Recompute, TrainingSizes, scratch_bytes};
use crate::network::adapter::{AdapterSizes, DeviceAdapter};
use crate::network::base::BaseStorage;
use crate::network::decoder::{Dropout, Pass};
use crate::network::dora;
use crate::network::head::Head;
use crate::network::moments::{MomentStorage, Shard};
use crate::network::plan::{NetworkPlan, NetworkPlanner, max_binding};
use crate::network::trained::Trained;
use crate::ops::distillation::Distillation;
use crate::quant::format::Float;

/// Row counts are rounded up to this, so that few shapes of list occur.
pub(super) const ROW_CLASS: u32 = 32;

/// The sizes and choices that decide a plan.
#[derive(Clone, Debug)]
pub struct PlanSettings {
    /// Storage of the base on the device.
    pub base: BaseStorage,
    /// Rows of the largest micro-batch.
    pub max_rows: usize,
    /// Tokens of the longest sequence.
    pub max_positions: usize,
    /// Layers that keep their activations.
    pub recompute: RecomputePolicy,
    /// Probability that an element of A's input becomes 0, from 0 to below 1.
    pub dropout: f32,
    /// True if the factors B have another learning rate than A.
    pub loraplus: bool,
    /// Strength of NEFTune's noise on embeddings in training; 0 is off.
    pub neftune_alpha: f32,
    /// Storage of AdamW's moments; `None` plans the forward pass and the loss alone.
    pub training: Option<MomentStorage>,
    /// The loss of a student, where there is a teacher.
    pub distillation: Option<Distillation>,
    /// The part of a base's moments that the device keeps, where the base is trained.
    pub shard: Shard,
}

/// The rule that decides how many layers keep their activations for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecomputePolicy {
    /// Keep as many layers as leave the kept activations within `kept_bytes` and the whole run within `total_bytes`.
    Auto {
        /// Limit for the kept activations, in bytes.
        kept_bytes: u64,
        /// Limit for all buffers of the run together, in bytes.
        total_bytes: u64,
    },
    /// Keep the activations of this many layers, counted from the top.
    Keep(usize),
}

/// The part of a pass over a micro-batch that a list does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PassPart {
    /// Forward and loss, as in evaluation.
    Evaluation,
    /// As [`Self::Evaluation`], without the adapter.
    Base,
    /// Forward, loss and backward.
    Training,
    /// Forward and loss as in training, where the weights of the losses follow from the losses.
    Forward,
    /// Loss and backward after [`Self::Forward`], whose activations are still there.
    Backward,
}

/// Every buffer of a training run and how its lists are recorded.
#[derive(Clone, Debug)]
pub struct TrainPlan {
    /// The part that generation has too. Its two uniforms hold the parameters of a pass, and those of the optimizer's
    /// list and of the list that opens a step.
    pub shared: NetworkPlan,
    /// Everything that the optimizer changes.
    pub parameters: TrainedParameters,
    /// Buffers of the rows with a label.
    pub head: HeadBuffers,
    /// Buffers of the optimizer step.
    pub optimizer: OptimizerBuffers,
    /// Layers that keep their activations.
    pub recompute: Recompute,
    /// Type of the activations that are kept.
    pub activation_format: ActivationFormat,
    /// Rows of the largest pass, a multiple of 32.
    pub max_rows: u32,
    /// Strength of NEFTune's noise; 0 is off.
    pub neftune_alpha: f32,
    dropout: f32,
}

impl TrainPlan {
    /// Plans a run that stores activations in f32. `stored` tells the type in which the files hold a tensor.
    pub fn new(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: impl Fn(&str) -> Float,
        modules: &[LoraModule],
        settings: &PlanSettings,
    ) -> Self {
        Self::with_activations(capabilities, config, stored, modules, settings, ActivationFormat::F32)
    }

    /// As [`Self::new`], with activations stored in `activation_format`.
    pub fn with_activations(
        capabilities: Capabilities,
        config: &ModelConfig,
        stored: impl Fn(&str) -> Float,
        modules: &[LoraModule],
        settings: &PlanSettings,
        activation_format: ActivationFormat,
    ) -> Self {
        let keep = |kept_layers| {
            Self::with_recompute(
                capabilities,
                config,
                &stored,
                modules,
                settings,
                Recompute { kept_layers },
                activation_format,
            )
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
        activation_format: ActivationFormat,
    ) -> Self {
        let mut planner = NetworkPlanner::new(capabilities, config, settings.base, stored, settings.max_positions);
        let max_binding = max_binding(&capabilities);
        let max_rows = round_up(settings.max_rows as u32, ROW_CLASS);
        let sizes = AdapterSizes {
            rows: max_rows as usize,
            training: settings.training,
            loraplus: settings.loraplus,
            max_segment_bytes: max_binding,
        };
        let adapter = DeviceAdapter::plan(&mut planner.memory, modules, config, sizes);
        let base = settings
            .training
            .filter(|_| settings.base == BaseStorage::Trained)
            .map(|moments| Trained::plan(&mut planner.memory, &planner.network, max_rows, moments, settings.shard));
        let inputs = Inputs::plan(&mut planner.memory, config, max_rows);
        let NetworkPlanner { memory, arena, network, .. } = &mut planner;
        let activations = if settings.training.is_some() {
            let dropout = settings.dropout > 0.0;
            let sizes = TrainingSizes { rows: max_rows, recompute, activation_format, dropout };
            Activations::plan_training(memory, arena, network, &adapter, sizes)
        } else {
            Activations::plan_inference(memory, arena, network, std::slice::from_ref(&adapter), max_rows)
        };
        let sizes = (max_rows, settings.dropout > 0.0);
        let head = HeadBuffers::plan(memory, arena, (network, &adapter), sizes, settings.distillation, capabilities);
        let (panel, mut partials) =
            scratch_bytes(network, std::slice::from_ref(&adapter), max_rows, head.chunk_rows(), &capabilities);
        if base.is_some() {
            partials = partials.max(Trained::partials_bytes(network));
        }
        let mut shared = planner.finish(inputs, activations, (panel, partials));
        let parameters = TrainedParameters { adapter, base };
        let optimizer = OptimizerBuffers::plan(&mut shared.memory, &parameters.ranges());
        let PlanSettings { dropout, neftune_alpha, .. } = *settings;
        let mut plan = Self {
            shared,
            parameters,
            head,
            optimizer,
            recompute,
            activation_format,
            max_rows,
            neftune_alpha,
            dropout,
        };
        // The longest list has all rows and a label in each; shorter ones have no more dispatches.
        let longest = plan.record_pass(max_rows, round_up(max_rows, LABEL_CLASS), settings.training.is_some());
        let pass_bytes = params_bytes(&longest.commands);
        let step_lists = [plan.record_optimizer(), plan.record_begin(), plan.record_norms()];
        let step_bytes = step_lists.iter().map(|list| params_bytes(&list.commands)).max().unwrap_or(0) + PARAMS_STRIDE;
        plan.shared.plan_uniforms([pass_bytes, step_bytes]);
        plan
    }

    /// Bytes by category.
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger()
    }

    /// Checks every buffer against the device's limits.
    ///
    /// # Errors
    /// As [`NetworkPlan::check_limits`].
    pub fn check_limits(&self) -> Result<(), GpuError> {
        self.shared.check_limits()
    }

    /// The problem sizes of the largest micro-batch for which several kernels exist.
    pub fn problem_sizes(&self) -> Vec<ProblemSize> {
        let training = self.shared.activations.workspace.backward.is_some();
        self.record_pass(self.max_rows, self.max_rows, training).problem_sizes
    }

    /// The rows and labels of the list that a micro-batch takes: its own, rounded up.
    pub fn class(&self, rows: usize, labels: usize) -> (u32, u32) {
        let rows = round_up(rows as u32, ROW_CLASS).min(self.max_rows);
        (rows, round_up(labels as u32, LABEL_CLASS).min(round_up(self.max_rows, LABEL_CLASS)))
    }

    /// What follows from the loaded base, once: the norms that DoRA needs. Nothing for other adapters.
    pub fn record_norms(&self) -> Recorder {
        let mut rec = self.shared.recorder();
        dora::record_norms(&mut rec, &self.shared.network, &self.parameters.adapter);
        rec
    }

    /// Opens an optimizer step: gradients and the sum of losses become zero, and DoRA's factors are those of the adapter of now.
    pub fn record_begin(&self) -> Recorder {
        let mut rec = self.shared.recorder();
        for range in self.parameters.ranges() {
            rec.clear(range.grads);
        }
        rec.clear(self.optimizer.total_loss());
        let ranks = self.shared.activations.workspace.ranks.as_ref();
        dora::record_factors(&mut rec, &self.shared.network, &self.parameters.adapter, ranks);
        rec
    }

    /// One micro-batch: forward, loss, and with `training` backward, adding to gradients and the sum of losses.
    pub fn record_pass(&self, rows: u32, labels: u32, training: bool) -> Recorder {
        self.record_part(rows, labels, if training { PassPart::Training } else { PassPart::Evaluation })
    }

    /// A part of a pass over a micro-batch.
    pub fn record_part(&self, rows: u32, labels: u32, part: PassPart) -> Recorder {
        let training = !matches!(part, PassPart::Evaluation | PassPart::Base);
        let mut rec = self.shared.recorder();
        let dropout = Dropout { p: self.dropout, seed: self.optimizer.dropout_seed };
        let trained = self.parameters.base.as_ref();
        let pass = Pass {
            adapter: (part != PassPart::Base).then_some(&self.parameters.adapter),
            trained,
            dropout: (training && self.dropout > 0.0).then_some(dropout),
            noise: (training && self.neftune_alpha > 0.0).then_some(self.optimizer.dropout_seed),
            ..self.shared.pass(rows)
        };
        let hidden = match part {
            PassPart::Backward => self.shared.activations.workspace.norm.first_rows(rows),
            _ => pass.forward(&mut rec),
        };
        let gradients = matches!(part, PassPart::Training | PassPart::Backward);
        let backward = self.shared.activations.workspace.backward.filter(|_| gradients);
        let d_hidden = backward.map(|workspace| workspace.d_norm.first_rows(rows));
        let head_pass = HeadPass { hidden, labels, total: self.optimizer.total_loss(), d_hidden };
        self.head.record(&mut rec, &self.head_of(pass.adapter, trained, pass.dropout), head_pass);
        if backward.is_some() {
            pass.backward(&mut rec);
        }
        rec
    }

    /// The forward pass up to the rows with a label, for [`Self::record_label_logits`].
    pub fn record_label_states(&self, rows: u32, labels: u32) -> Recorder {
        let mut rec = self.shared.recorder();
        let pass = Pass { adapter: Some(&self.parameters.adapter), ..self.shared.pass(rows) };
        let hidden = pass.forward(&mut rec);
        self.head.record_gather(&mut rec, hidden, labels);
        rec
    }

    /// The logits of rows with a label, from the one with the number `first` on, as far as they fit into a chunk of the head; they lie in
    /// the returned matrix.
    pub fn record_label_logits(&self, first: u32, labels: u32) -> (Recorder, Matrix) {
        let mut rec = self.shared.recorder();
        let head = self.head_of(Some(&self.parameters.adapter), None, None);
        let logits = self.head.record_label_logits(&mut rec, &head, (first, labels));
        (rec, logits)
    }

    /// The head of a pass.
    fn head_of<'a>(
        &'a self,
        adapter: Option<&'a DeviceAdapter>,
        trained: Option<&'a Trained>,
        dropout: Option<Dropout>,
    ) -> Head<'a> {
        Head { network: &self.shared.network, adapter, trained, workspace: &self.head.workspace, dropout, chunk: 0 }
    }

    /// Clipping and AdamW over everything that is trained.
    pub fn record_optimizer(&self) -> Recorder {
        self.record_optimizer_parts(&OptimizerPart::ALL)
    }

    /// The lists of an optimizer's step: one, or of moments that ranks share out one for each part.
    pub fn record_optimizer_lists(&self) -> Vec<Recorder> {
        match self.parameters.is_sharded() {
            false => vec![self.record_optimizer()],
            true => OptimizerPart::ALL.iter().map(|part| self.record_optimizer_parts(&[*part])).collect(),
        }
    }

    fn record_optimizer_parts(&self, parts: &[OptimizerPart]) -> Recorder {
        let mut rec = self.shared.recorder();
        let ranges = self.parameters.ranges();
        parts.iter().for_each(|part| self.optimizer.record(&mut rec, &ranges, *part));
        rec
    }

    /// The forward pass alone, for comparisons; the logits of the first `rows` rows lie in the returned matrix.
    pub fn record_logits(&self, rows: u32) -> (Recorder, Matrix) {
        let mut rec = self.shared.recorder();
        let pass = Pass { adapter: Some(&self.parameters.adapter), ..self.shared.pass(rows) };
        let hidden = pass.forward(&mut rec);
        let logits = self.head.record_logits(&mut rec, &self.head_of(pass.adapter, None, None), hidden);
        (rec, logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Command, Cooperative};
    use crate::lora::config::{LoraConfig, TargetModules};
    use crate::lora::targets;

    fn plan(capabilities: Capabilities, max_rows: usize, recompute: RecomputePolicy) -> TrainPlan {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_tied/config.json");
        let config = ModelConfig::from_file(&path).unwrap();
        let modules = targets::resolve(&LoraConfig::default(), &config).unwrap();
        let base = BaseStorage::AsStored;
        let training = Some(MomentStorage::F32);
        let settings = PlanSettings {
            base,
            max_rows,
            max_positions: 64,
            recompute,
            dropout: 0.0,
            loraplus: false,
            neftune_alpha: 0.0,
            training,
            distillation: None,
            shard: Shard::default(),
        };
        TrainPlan::new(capabilities, &config, |_| Float::F32, &modules, &settings)
    }

    #[test]
    fn the_pass_of_the_base_reads_nothing_of_the_adapter() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_tied/config.json");
        let config = ModelConfig::from_file(&path).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let plain = LoraConfig { target_modules: TargetModules::Names(names(&["q_proj"])), ..LoraConfig::default() };
        for lora in [
            LoraConfig {
                target_modules: TargetModules::Names(names(&["q_proj", "lm_head", "embed_tokens"])),
                ..plain.clone()
            },
            LoraConfig { modules_to_save: names(&["lm_head", "embed_tokens"]), ..plain.clone() },
            LoraConfig {
                trainable_token_indices: vec![("embed_tokens".into(), vec![3])],
                use_dora: true,
                ..plain.clone()
            },
        ] {
            let modules = targets::resolve(&lora, &config).unwrap();
            let settings = PlanSettings {
                base: BaseStorage::AsStored,
                max_rows: 64,
                max_positions: 64,
                recompute: RecomputePolicy::Keep(1),
                dropout: 0.0,
                loraplus: false,
                neftune_alpha: 0.0,
                training: Some(MomentStorage::F32),
                distillation: None,
                shard: Shard::default(),
            };
            let plan = TrainPlan::new(Capabilities::BASELINE, &config, |_| Float::F32, &modules, &settings);
            let reads = |part| {
                plan.record_part(64, 64, part).commands.iter().any(|command| match command {
                    Command::Dispatch(dispatch) => dispatch.views.iter().any(|view| {
                        plan.parameters.adapter.segments.iter().any(|segment| segment.params.buffer == view.buffer)
                    }),
                    _ => false,
                })
            };
            assert!(reads(PassPart::Training) && !reads(PassPart::Base), "{lora:?}");
        }
    }

    #[test]
    fn a_buffer_over_the_limit_is_named_before_anything_is_allocated() {
        let capabilities = Capabilities { max_binding_bytes: 1 << 20, ..Capabilities::BASELINE };
        plan(capabilities, 64, RecomputePolicy::Keep(9)).check_limits().unwrap();
        let message = plan(capabilities, 1 << 15, RecomputePolicy::Keep(9)).check_limits().unwrap_err().to_string();
        assert!(message.contains("1.05 MB") && message.contains("⟨batch-size⟩"), "{message}");
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
                        bytes <= plan.shared.uniforms[0].bytes,
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
