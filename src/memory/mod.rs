//! Estimates of a run's device memory: the training plan, made from sizes alone and without a GPU.

pub mod methods;
pub mod picture;
pub mod summary;

use serde::Serialize;

use crate::Result;
use crate::gpu::{Capabilities, Category, Cooperative, MatrixUnits};
use crate::lora::factors;
use crate::lora::targets;
use crate::model::config::ModelConfig;
use crate::model::tensors::parameters;
use crate::network::activations::ActivationFormat;
use crate::network::moments::Shard;
use crate::ops::distillation::DEFAULT_TOP_K;
use crate::quant::format::Float;
use crate::train::budget::{PlanRequest, longest_below};
use crate::train::settings::{ActivationsChoice, Method, RecomputeChoice, RunSettings};

/// Limits of a discrete GPU, for estimates without a device: bindings of up to 2 GiB.
pub const ASSUMED_CAPABILITIES: Capabilities =
    Capabilities { max_binding_bytes: (1 << 31) - 1, max_buffer_bytes: (1 << 31) - 1, ..Capabilities::BASELINE };

/// [`ASSUMED_CAPABILITIES`], with matrix units of the most common size if `matrix_units` is on.
pub fn assumed_target(matrix_units: MatrixUnits) -> Capabilities {
    let cooperative = (matrix_units == MatrixUnits::On).then_some(Cooperative { side: 16, subgroups: [32, 32] });
    Capabilities { cooperative, ..ASSUMED_CAPABILITIES }
}

/// Estimated bytes of one method.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// Training method that the estimate is for.
    pub method: Method,
    /// Bytes on the device.
    #[serde(rename = "gpu_bytes")]
    pub total: u64,
    /// Bytes of each category that is not empty, in the order of [`Category::ALL`]. They add up to `total`.
    #[serde(serialize_with = "as_object")]
    pub categories: Vec<(Category, u64)>,
    /// Number of parameters that the optimizer changes.
    pub trained_parameters: u64,
    /// Number of decoder layers of the model.
    pub layers: usize,
    /// Layers that keep their activations; the others recompute them.
    pub kept_layers: usize,
    /// True if activations are kept in bf16.
    pub bf16_activations: bool,
    /// True if the total fits in `gpu_memory` of the settings; `None` without such a setting.
    pub fits: Option<bool>,
    /// Longest sequence that fits in `gpu_memory`; `None` without such a setting.
    pub longest_seq_len: Option<usize>,
}

/// Writes pairs of a category and its bytes as an object, as the plan of a run has it.
fn as_object<S: serde::Serializer>(categories: &[(Category, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(categories.iter().copied())
}

/// Plans a run of `settings` with full micro-batches of sequences of `seq_len` tokens, two an example where answers are compared, on as
/// many devices as its world size; the estimate is that of each. A teacher has [`DEFAULT_TOP_K`] tokens for each row. `float` is the type
/// of the model's files.
///
/// # Errors
/// The settings adapt no module, or the rank is 0.
pub fn estimate(
    settings: &RunSettings,
    config: &ModelConfig,
    float: Float,
    seq_len: usize,
    capabilities: Capabilities,
) -> Result<Estimate> {
    let modules = match settings.method {
        Method::Full => Vec::new(),
        Method::Lora | Method::Qlora => targets::resolve(&settings.lora_config(), config)?,
    };
    let stored = |_: &str| float;
    let of_length = |length: usize| PlanRequest {
        settings,
        config,
        modules: &modules,
        stored: &stored,
        max_rows: length.saturating_mul(settings.batch_size).saturating_mul(settings.sequences_per_example()),
        max_positions: length,
        distillation: settings.distillation(DEFAULT_TOP_K),
        capabilities,
        shard: Shard { rank: 0, size: settings.world_size.unwrap_or(1).max(1) },
    };
    // An estimate compares the plan with the budget; it does not enforce the budget.
    let plan = |settings: &RunSettings| PlanRequest { settings, ..of_length(seq_len) }.plan_within_budget();
    let unlimited = RunSettings { gpu_memory: None, ..settings.clone() };
    // As many layers keep their activations as fit in the budget. Where nothing fits, the smallest plan is shown.
    let activations = match settings.activations {
        ActivationsChoice::Auto => ActivationsChoice::Bf16,
        chosen => chosen,
    };
    let smallest = RunSettings { recompute: RecomputeChoice::All, activations, ..unlimited.clone() };
    let fitting = plan(settings).ok().filter(|_| settings.gpu_memory.is_some());
    let fits = settings.gpu_memory.map(|_| fitting.is_some());
    let shown = match fitting {
        Some(plan) => plan,
        None if settings.gpu_memory.is_some() && settings.recompute == RecomputeChoice::Auto => plan(&smallest)?,
        None => plan(&unlimited)?,
    };
    let fits_at = |length: usize| of_length(length).fits_within_budget().unwrap_or(false);
    let longest_seq_len = settings.gpu_memory.map(|_| longest_below(config.max_position_embeddings + 1, fits_at));
    let ledger = shown.ledger();
    Ok(Estimate {
        method: settings.method,
        total: ledger.total(),
        categories: ledger.entries().collect(),
        trained_parameters: match settings.method {
            Method::Full => parameters(config),
            Method::Lora | Method::Qlora => factors::parameters(&modules),
        },
        layers: config.num_layers,
        kept_layers: shown.recompute.kept_layers,
        bf16_activations: shown.activation_format == ActivationFormat::Bf16,
        fits,
        longest_seq_len,
    })
}

/// Divides a card's memory into `width` cells: the number of cells of each category, in the ledger's order; the rest is free. Every
/// category that is not empty gets at least one cell.
pub fn bar(ledger: &[(Category, u64)], card: u64, width: usize) -> Vec<(Category, usize)> {
    let cell = card as f64 / width as f64;
    let mut edge = 0.0;
    let mut drawn = 0;
    ledger
        .iter()
        .map(|(category, bytes)| {
            edge += *bytes as f64 / cell;
            let cells = (edge.round() as usize).saturating_sub(drawn).max(usize::from(*bytes as f64 > 0.2 * cell));
            drawn += cells;
            (*category, cells)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;
    use crate::train::settings::ObjectiveChoice;

    fn settings(method: Method) -> RunSettings {
        RunSettings { method, batch_size: 1, ..RunSettings::default() }
    }

    #[test]
    fn pairs_and_teachers_count() {
        let config = shapes::by_name("llama-3.2-1b").unwrap();
        let of = |objective, batch_size| {
            let settings = RunSettings { objective, batch_size, ..settings(Method::Qlora) };
            estimate(&settings, &config, Float::Bf16, 512, ASSUMED_CAPABILITIES).unwrap().total
        };
        assert_eq!(of(ObjectiveChoice::Dpo, 1), of(ObjectiveChoice::Sft, 2));
        // An id and a probability of each of the teacher's tokens, and the loss with the label.
        let teacher = of(ObjectiveChoice::Distill, 1) - of(ObjectiveChoice::Sft, 1);
        assert!((512 * 64 * 8..2 * 512 * 64 * 8).contains(&teacher), "{teacher}");
    }

    #[test]
    fn four_bits_take_a_quarter_and_a_budget_says_what_fits() {
        let config = shapes::by_name("llama-2-7b").unwrap();
        let bytes = |method| {
            let estimate = estimate(&settings(method), &config, Float::Bf16, 512, ASSUMED_CAPABILITIES).unwrap();
            let weights = estimate.categories.iter().find(|(c, _)| *c == Category::Weights).unwrap().1;
            (estimate.total, weights)
        };
        let ((qlora, packed), (lora, whole)) = (bytes(Method::Qlora), bytes(Method::Lora));
        assert!(qlora < lora && packed < whole * 3 / 10, "{qlora} {lora} {packed} {whole}");
        let with_budget = |gpu_memory| RunSettings { gpu_memory: Some(gpu_memory), ..settings(Method::Qlora) };
        let small = estimate(&with_budget(3_000_000_000), &config, Float::Bf16, 512, ASSUMED_CAPABILITIES).unwrap();
        assert_eq!((small.fits, small.longest_seq_len), (Some(false), Some(0)));
        let large = estimate(&with_budget(12_000_000_000), &config, Float::Bf16, 512, ASSUMED_CAPABILITIES).unwrap();
        assert!(large.fits == Some(true) && large.longest_seq_len.unwrap() > 512, "{large:?}");
        assert!(large.total <= 12_000_000_000);
    }

    #[test]
    fn sizes_beyond_all_devices_name_the_setting() {
        let config = shapes::by_name("smollm2-135m").unwrap();
        let of = |batch_size, seq_len, method| {
            let settings = RunSettings { batch_size, ..settings(method) };
            estimate(&settings, &config, Float::Bf16, seq_len, ASSUMED_CAPABILITIES)
        };
        let largest = i64::MAX as usize;
        for (batch_size, seq_len) in [
            (16_777_217, 256),
            (100_000, 256),
            (usize::from(u16::MAX), 65_536),
            (largest, 2),
            (1, largest),
            (largest, largest),
        ] {
            for method in [Method::Qlora, Method::Full] {
                match of(batch_size, seq_len, method) {
                    // A true number grows with the rows.
                    Ok(estimate) => {
                        assert!(estimate.total / 2000 > (batch_size * seq_len) as u64, "{batch_size} {seq_len}")
                    }
                    Err(error) => {
                        let message = error.to_string();
                        assert!(message.contains(&format!("⟨batch-size={batch_size}⟩")), "{message}");
                    }
                }
            }
        }
        assert!(of(16_777_217, 256, Method::Qlora).is_err());
        let with_budget = RunSettings { batch_size: largest, gpu_memory: Some(1 << 34), ..settings(Method::Lora) };
        estimate(&with_budget, &config, Float::Bf16, 512, ASSUMED_CAPABILITIES).unwrap_err();
    }

    #[test]
    fn bars_fill_their_share_of_the_card() {
        let ledger = [(Category::Weights, 400), (Category::Adapter, 7), (Category::Workspace, 93)];
        let cells = bar(&ledger, 1000, 100);
        assert_eq!(cells, [(Category::Weights, 40), (Category::Adapter, 1), (Category::Workspace, 9)]);
    }
}
