//! Flags of the objective.

use std::path::PathBuf;

use clap::Args;
use loraine::train::settings::{ObjectiveChoice, RunSettings};

#[derive(Args, Clone)]
#[command(next_help_heading = "Objective")]
pub struct ObjectiveArgs {
    /// What to learn: the answers themselves, a preference between answers, or a teacher's probabilities [default: sft]
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
    /// With distill: file with the teacher's log-probabilities, which `loraine distill` writes
    #[arg(long, value_name = "FILE")]
    teacher: Option<PathBuf>,
    /// With distill: divisor of the logits of teacher and student [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// With distill: share of the cross-entropy with the labels in the loss [default: 0]
    #[arg(long, value_name = "SHARE")]
    hard_label_share: Option<f64>,
}

impl ObjectiveArgs {
    /// Applies the given flags to `settings`.
    pub fn apply(&self, settings: &mut RunSettings) {
        settings.objective = self.objective.unwrap_or(settings.objective);
        settings.teacher = self.teacher.clone().or_else(|| settings.teacher.take());
        let numbers = [
            (&mut settings.beta, self.beta),
            (&mut settings.label_smoothing, self.label_smoothing),
            (&mut settings.rpo_alpha, self.rpo_alpha),
            (&mut settings.simpo_gamma, self.simpo_gamma),
            (&mut settings.desirable_weight, self.desirable_weight),
            (&mut settings.undesirable_weight, self.undesirable_weight),
            (&mut settings.temperature, self.temperature),
            (&mut settings.hard_label_share, self.hard_label_share),
        ];
        for (setting, flag) in numbers {
            *setting = flag.or(*setting);
        }
    }
}
