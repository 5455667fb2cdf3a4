//! The model whose sizes and kernels are examined.

use std::collections::BTreeSet;

use crate::Result;
use crate::gpu::{Capabilities, Command, Recorder};
use crate::lora::targets;
use crate::model::config::ModelConfig;
use crate::network::moments::Shard;
use crate::quant::format::Float;
use crate::train::budget::PlanRequest;
use crate::train::settings::{Method, RunSettings};

/// Rows of the LoRA factors.
pub(super) const RANK: usize = 16;

/// The sizes of a model, and the rows of its micro-batch.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name for the report.
    pub name: String,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Rows of the micro-batch.
    pub rows: usize,
    /// Leaves out the formats of weights that runs seldom use, and all but two layers.
    pub quick: bool,
}

impl Subject {
    /// The names of the kernels in steps of this model: QLoRA, LoRA, and full training where the model allows it.
    ///
    /// # Errors
    /// A model that cannot be planned.
    pub(super) fn kernels(&self, capabilities: Capabilities) -> Result<BTreeSet<&'static str>> {
        // Two layers of every kind have the kernels of all, and a plan of a few rows those of many.
        let mut found = BTreeSet::new();
        // Experts cannot be trained themselves.
        let full = Some(Method::Full).filter(|_| self.config.experts.is_none());
        for method in [Method::Qlora, Method::Lora].into_iter().chain(full) {
            let settings = RunSettings { method, ..RunSettings::default() };
            let modules = match method {
                Method::Full => Vec::new(),
                Method::Lora | Method::Qlora => targets::resolve(&settings.lora_config(), &self.config)?,
            };
            let request = PlanRequest {
                settings: &settings,
                config: &self.config,
                modules: &modules,
                stored: &|_| Float::Bf16,
                max_rows: self.rows,
                max_positions: self.rows,
                distillation: None,
                capabilities,
                shard: Shard::default(),
            };
            let plan = request.plan_within_budget()?;
            let rows = plan.max_rows;
            for rec in [plan.record_begin(), plan.record_pass(rows, rows, true), plan.record_optimizer()] {
                found.extend(names(&rec));
            }
        }
        Ok(found)
    }
}

fn names(rec: &Recorder) -> impl Iterator<Item = &'static str> {
    rec.commands.iter().filter_map(|command| match command {
        Command::Dispatch(dispatch) => Some(dispatch.kernel.name),
        Command::Copy { .. } | Command::Clear(_) => None,
    })
}
