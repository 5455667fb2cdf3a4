//! Flags of the objective.

use clap::Args;
use loraine::train::settings::{ObjectiveChoice, RunSettings};

#[derive(Args, Clone)]
#[command(next_help_heading = "Objective")]
pub struct ObjectiveArgs {
    /// What to learn: the answers themselves, or a preference between answers [default: sft]
    #[arg(long, value_enum)]
    objective: Option<ObjectiveChoice>,
    /// With a preference: how strictly to stay close to the model before training [default: 0.1]
    #[arg(long, value_name = "BETA")]
    beta: Option<f64>,
    /// With dpo, rpo and simpo: share of the pairs to take as the wrong way round [default: 0]
    #[arg(long, value_name = "SHARE")]
    label_smoothing: Option<f64>,
    /// With rpo: weight of the chosen answers themselves [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    rpo_alpha: Option<f64>,
    /// With simpo: margin between the answers [default: 0.5]
    #[arg(long, value_name = "MARGIN")]
    simpo_gamma: Option<f64>,
    /// With kto: weight of good answers [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    desirable_weight: Option<f64>,
    /// With kto: weight of bad answers [default: 1]
    #[arg(long, value_name = "WEIGHT")]
    undesirable_weight: Option<f64>,
}

impl ObjectiveArgs {
    /// Applies the given flags to `settings`.
    pub fn apply(&self, settings: &mut RunSettings) {
        settings.objective = self.objective.unwrap_or(settings.objective);
        let numbers = [
            (&mut settings.beta, self.beta),
            (&mut settings.label_smoothing, self.label_smoothing),
            (&mut settings.rpo_alpha, self.rpo_alpha),
            (&mut settings.simpo_gamma, self.simpo_gamma),
            (&mut settings.desirable_weight, self.desirable_weight),
            (&mut settings.undesirable_weight, self.undesirable_weight),
        ];
        for (setting, flag) in numbers {
            *setting = flag.or(*setting);
        }
    }
}
