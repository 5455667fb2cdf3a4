//! A run's memory plan held to a budget: what is kept and what is computed again follows from it.

use super::plan::{PlanSettings, RecomputePolicy, TrainPlan};
use super::settings::{ActivationsChoice, RecomputeChoice, RunSettings};
use crate::gpu::Capabilities;
use crate::lora::targets::LoraModule;
use crate::model::config::ModelConfig;
use crate::network::activations::KeptAs;
use crate::network::base::BaseStorage;
use crate::quant::format::Float;
use crate::setting::{BATCH_SIZE, GPU_MEMORY, MAX_SEQ_LEN, RANK};
use crate::{Error, Result};

/// Without a stated budget, kept activations stop here and deeper layers are recomputed.
const DEFAULT_KEPT_BYTES: u64 = 256 << 20;

/// Rows of the largest micro-batch, since the longest slots may meet in one, and of the longest slot.
pub fn longest_rows(lengths: impl Iterator<Item = usize>, batch_size: usize) -> (usize, usize) {
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    (lengths.iter().take(batch_size).sum(), lengths.first().copied().unwrap_or(1))
}

/// Plans a run of the given sizes and holds it to the budget of the settings.
///
/// # Errors
/// A plan over the budget, with the longest sequence that would fit.
pub fn plan_within_budget(
    settings: &RunSettings,
    config: &ModelConfig,
    modules: &[LoraModule],
    stored: impl Fn(&str) -> Float,
    max_rows: usize,
    max_positions: usize,
    capabilities: Capabilities,
) -> Result<TrainPlan> {
    let total_bytes = settings.gpu_memory.unwrap_or(u64::MAX);
    // The longest micro-batch has this many sequences of the longest length, or fewer.
    let sequences = max_rows.div_ceil(max_positions.max(1)).min(settings.batch_size);
    let kept_bytes = settings.gpu_memory.unwrap_or(DEFAULT_KEPT_BYTES);
    let recompute = match settings.recompute {
        RecomputeChoice::Auto => RecomputePolicy::Auto { kept_bytes, total_bytes },
        RecomputeChoice::None => RecomputePolicy::Keep(config.num_layers),
        RecomputeChoice::All => RecomputePolicy::Keep(0),
    };
    let base = settings.base_storage().of(config)?;
    let plan = |kept_as| {
        let sizes = plan_settings(settings, base, max_rows, max_positions, recompute);
        TrainPlan::with_activations(capabilities, config, &stored, modules, &sizes, kept_as)
    };
    let whole = match settings.activations {
        ActivationsChoice::F32 => plan(KeptAs::F32),
        ActivationsChoice::Bf16 => plan(KeptAs::Bf16),
        ActivationsChoice::Auto => {
            let whole = plan(KeptAs::F32);
            if whole.ledger().total() <= total_bytes { whole } else { plan(KeptAs::Bf16) }
        }
    };
    let needed = whole.ledger().total();
    if needed <= total_bytes {
        whole.check_limits()?;
        return Ok(whole);
    }
    let fits = |length: usize| {
        fits_within_budget(settings, config, modules, &stored, length * sequences, length, capabilities)
            .unwrap_or(false)
    };
    let advice = match longest_below(max_positions, fits) {
        0 => {
            format!("shorter sequences alone do not make it fit: lower {BATCH_SIZE} or {RANK}, or take a smaller model")
        }
        length => {
            format!("with these settings sequences of up to {length} tokens fit ({})", MAX_SEQ_LEN.is(length))
        }
    };
    let problem = format!("the run needs {needed} bytes on the device, {GPU_MEMORY} allows {total_bytes}; {advice}");
    Err(Error::setting(GPU_MEMORY, problem))
}

/// The longest length under `end` for which `fits` holds, by bisection; 0 where there is none of two tokens or more.
pub fn longest_below(end: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (1, end);
    while low + 1 < high {
        let middle = (low + high) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    if low == 1 { 0 } else { low }
}

/// Whether [`plan_within_budget`] has a plan for a run of these sizes. Asked of many lengths: the plans that take least answer it.
///
/// # Errors
/// A storage that the files do not allow.
pub fn fits_within_budget(
    settings: &RunSettings,
    config: &ModelConfig,
    modules: &[LoraModule],
    stored: impl Fn(&str) -> Float,
    max_rows: usize,
    max_positions: usize,
    capabilities: Capabilities,
) -> Result<bool> {
    let base = settings.base_storage().of(config)?;
    // Of few layers, keeping can take less than the buffers through which what is made again passes.
    let kept_layers: &[usize] = match settings.recompute {
        RecomputeChoice::Auto => &[0, config.num_layers],
        RecomputeChoice::None => &[config.num_layers],
        RecomputeChoice::All => &[0],
    };
    let kept_as: &[KeptAs] = match settings.activations {
        ActivationsChoice::F32 => &[KeptAs::F32],
        ActivationsChoice::Bf16 => &[KeptAs::Bf16],
        ActivationsChoice::Auto => &[KeptAs::Bf16, KeptAs::F32],
    };
    let fits = |kept_layers, kept_as| {
        let sizes = plan_settings(settings, base, max_rows, max_positions, RecomputePolicy::Keep(kept_layers));
        let plan = TrainPlan::with_activations(capabilities, config, &stored, modules, &sizes, kept_as);
        plan.ledger().total() <= settings.gpu_memory.unwrap_or(u64::MAX) && plan.check_limits().is_ok()
    };
    Ok(kept_layers.iter().any(|layers| kept_as.iter().any(|kept_as| fits(*layers, *kept_as))))
}

fn plan_settings(
    settings: &RunSettings,
    base: BaseStorage,
    max_rows: usize,
    max_positions: usize,
    recompute: RecomputePolicy,
) -> PlanSettings {
    let training = Some(settings.optim.moments());
    PlanSettings { base, max_rows, max_positions, recompute, dropout: settings.dropout as f32, training }
}
