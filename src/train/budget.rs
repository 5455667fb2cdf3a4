//! A run's memory plan held to a budget, which decides the activations that are kept and those that are recomputed.

use super::plan::{PlanSettings, ROW_CLASS, RecomputePolicy, TrainPlan};
use super::settings::{ActivationsChoice, RecomputeChoice, RunSettings};
use crate::gpu::{Capabilities, readable_need};
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::network::activations::ActivationFormat;
use crate::network::base::BaseStorage;
use crate::network::moments::Shard;
use crate::ops::distillation::Distillation;
use crate::panics::caught;
use crate::quant::format::Float;
use crate::setting::{BATCH_SIZE, GPU_MEMORY, MAX_SEQ_LEN, RANK};
use crate::{Error, Result};

/// Bytes of activations that a run keeps where no budget is stated. Layers for which there is no room compute theirs
/// again.
const DEFAULT_KEPT_BYTES: u64 = 256 << 20;

/// Rows of the largest micro-batch, in which the longest slots may meet, and rows of the longest slot.
pub fn longest_rows(lengths: impl Iterator<Item = usize>, batch_size: usize) -> (usize, usize) {
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    (lengths.iter().take(batch_size).sum(), lengths.first().copied().unwrap_or(1))
}

/// A run to be planned.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// Settings of the run, its budget among them.
    pub settings: &'a RunSettings,
    /// Sizes of the model.
    pub config: &'a ModelConfig,
    /// The modules of the adapter; none where the base itself is trained.
    pub modules: &'a [LoraModule],
    /// Tells the type in which the files hold a tensor.
    pub stored: &'a dyn Fn(&str) -> Float,
    /// Rows of the largest micro-batch.
    pub max_rows: usize,
    /// Tokens of the longest sequence.
    pub max_positions: usize,
    /// The loss of a student, where there is a teacher.
    pub distillation: Option<Distillation>,
    /// Limits and features of the device that the plan is for.
    pub capabilities: Capabilities,
    /// The part of a base's moments that the device keeps.
    pub shard: Shard,
}

impl PlanRequest<'_> {
    /// Plans the run and holds it to the budget of the settings.
    ///
    /// # Errors
    /// A plan over the budget, with the longest sequence that would fit.
    pub fn plan_within_budget(&self) -> Result<TrainPlan> {
        let settings = self.settings;
        let total_bytes = settings.gpu_memory.unwrap_or(u64::MAX);
        let kept_bytes = settings.gpu_memory.unwrap_or(DEFAULT_KEPT_BYTES);
        let recompute = match settings.recompute {
            RecomputeChoice::Auto => RecomputePolicy::Auto { kept_bytes, total_bytes },
            RecomputeChoice::None => RecomputePolicy::Keep(self.config.num_layers),
            RecomputeChoice::All => RecomputePolicy::Keep(0),
        };
        let base = settings.base_storage().of(self.config)?;
        let plan = |format| self.plan(base, recompute, format);
        let plan = match settings.activations {
            ActivationsChoice::F32 => plan(ActivationFormat::F32)?,
            ActivationsChoice::Bf16 => plan(ActivationFormat::Bf16)?,
            ActivationsChoice::Auto => {
                let exact = plan(ActivationFormat::F32)?;
                if exact.ledger().total() <= total_bytes { exact } else { plan(ActivationFormat::Bf16)? }
            }
        };
        let needed = plan.ledger().total();
        if needed <= total_bytes {
            plan.check_limits()?;
            return Ok(plan);
        }
        let advice = match self.longest_that_fits() {
            0 => {
                format!(
                    "shorter sequences alone do not make it fit: lower {BATCH_SIZE} or {RANK}, or take a smaller model"
                )
            }
            length => {
                format!("with these settings sequences of up to {length} tokens fit ({})", MAX_SEQ_LEN.is(length))
            }
        };
        let [needed, allowed] = readable_need(needed, total_bytes);
        let problem =
            format!("the run needs {needed} of memory on the device, {GPU_MEMORY} allows {allowed}; {advice}");
        Err(Error::setting(GPU_MEMORY, problem))
    }

    /// The longest sequence below that of the run that fits into the budget, with as many sequences in a micro-batch; 0 where none does.
    fn longest_that_fits(&self) -> usize {
        // The longest micro-batch has this many sequences of the longest length, or fewer.
        let most = self.settings.batch_size.saturating_mul(self.settings.sequences_per_example());
        let sequences = self.max_rows.div_ceil(self.max_positions.max(1)).min(most);
        let fits = |length: usize| {
            let request = Self { max_rows: length.saturating_mul(sequences), max_positions: length, ..*self };
            request.fits_within_budget().unwrap_or(false)
        };
        longest_below(self.max_positions, fits)
    }

    /// Tells whether [`Self::plan_within_budget`] has a plan for this run. Only the smallest plans that the settings allow are made,
    /// since a search for the longest sequence asks this of many lengths.
    ///
    /// # Errors
    /// A storage that the files do not allow.
    pub fn fits_within_budget(&self) -> Result<bool> {
        let settings = self.settings;
        let base = settings.base_storage().of(self.config)?;
        // A model of few layers may need less memory when it keeps all activations: recomputation needs buffers of its own.
        let kept_layers: &[usize] = match settings.recompute {
            RecomputeChoice::Auto => &[0, self.config.num_layers],
            RecomputeChoice::None => &[self.config.num_layers],
            RecomputeChoice::All => &[0],
        };
        let formats: &[ActivationFormat] = match settings.activations {
            ActivationsChoice::F32 => &[ActivationFormat::F32],
            ActivationsChoice::Bf16 => &[ActivationFormat::Bf16],
            ActivationsChoice::Auto => &[ActivationFormat::Bf16, ActivationFormat::F32],
        };
        let fits = |layers, format| {
            self.plan(base, RecomputePolicy::Keep(layers), format).is_ok_and(|plan| {
                plan.ledger().total() <= settings.gpu_memory.unwrap_or(u64::MAX) && plan.check_limits().is_ok()
            })
        };
        Ok(kept_layers.iter().any(|layers| formats.iter().any(|format| fits(*layers, *format))))
    }

    /// # Errors
    /// Sizes that kernels cannot index.
    fn plan(&self, base: BaseStorage, recompute: RecomputePolicy, format: ActivationFormat) -> Result<TrainPlan> {
        let Self { settings, max_rows, max_positions, shard, .. } = *self;
        self.check_rows()?;
        let training = Some(settings.optim.moments());
        let dropout = settings.dropout as f32;
        let (loraplus, neftune_alpha) =
            (settings.loraplus_lr_ratio.is_some(), settings.neftune_noise_alpha.unwrap_or(0.0) as f32);
        let sizes = PlanSettings {
            base,
            max_rows,
            max_positions,
            recompute,
            dropout,
            loraplus,
            neftune_alpha,
            training,
            distillation: self.distillation,
            shard,
        };
        let plan =
            || TrainPlan::with_activations(self.capabilities, self.config, self.stored, self.modules, &sizes, format);
        // Operations refuse what no dispatch can cover by a panic, since only sizes from outside lead there.
        caught(plan).map_err(|panic| self.too_large(&format!("more than kernels can index ({panic})")))
    }

    /// Kernels index the elements of a matrix by 32 bits.
    fn check_rows(&self) -> Result<()> {
        let config = self.config;
        let shapes = config.projections().map(|projection| config.projection_shape(projection));
        let widths = shapes.map(|(out, cols)| out.max(cols));
        // A row has a slot for each of its experts, and up to seven slots of each expert stay free.
        let experts = config.experts.as_ref().map_or(0, |experts| 8 * experts.top * config.hidden_size);
        // Full training has a term for each weight of a convolution.
        let terms = config.convolution_weights();
        let widest = widths.chain([config.hidden_size, experts, terms, 1]).max().unwrap_or(1);
        let most = (u32::MAX as usize / widest).saturating_sub(ROW_CLASS as usize);
        match self.max_rows.max(self.max_positions) <= most {
            true => Ok(()),
            false => Err(self.too_large(&format!("more than the {most} that kernels can index"))),
        }
    }

    fn too_large(&self, problem: &str) -> Error {
        let (batch_size, length) = (BATCH_SIZE.is(self.settings.batch_size), MAX_SEQ_LEN.is(self.max_positions));
        let problem = format!(
            "{batch_size} with {length} makes {} rows with matrices of this model: {problem}; lower {BATCH_SIZE} or \
             {MAX_SEQ_LEN}",
            self.max_rows
        );
        Error::setting(BATCH_SIZE, problem)
    }
}

/// The longest length below `end` for which `fits` holds, by bisection; 0 where none of two tokens or more fits.
pub fn longest_below(end: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, end);
    while low + 1 < high {
        let middle = (low + high) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    if low == 1 { 0 } else { low }
}
