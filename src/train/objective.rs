//! The training objective. It decides which rows of a micro-batch go through the head, the weight of each of their losses, and the
//! values that a run reports.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::preference::{Preference, Tally};
use crate::data::batches::MicroBatch;
use crate::data::settings::Feedback;

/// The objective of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// Supervised fine-tuning: the mean cross-entropy over all trained tokens of a step.
    #[default]
    Sft,
    /// A preference between answers: the mean loss over the preferences of a step.
    Preference(Preference),
    /// The likeliest tokens of a teacher: the mean loss over all trained tokens of a step.
    Distill {
        /// The share of the cross-entropy with the labels in the loss, from 0 to below 1.
        hard_label_share: f64,
    },
}

/// The rows of a micro-batch that go through the head.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadRows<'a> {
    /// Places of the rows in the micro-batch, ascending.
    pub rows: &'a [u32],
    /// The label of each row.
    pub labels: &'a [u32],
    /// The factor of each row's loss in the objective, and so of its gradient.
    pub weights: Vec<f32>,
}

/// The values that an objective reports of a step or of an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredReport")]
pub struct Report {
    /// Mean loss over the trained tokens, in nats.
    pub loss: f64,
    /// Further values by name. Metrics files and TensorBoard take the names as they are.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
}

/// A report as checkpoints hold it. Those of version 0.1 hold the loss alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredReport {
    Loss(f64),
    Report {
        loss: f64,
        #[serde(default)]
        values: BTreeMap<String, f64>,
    },
}

impl From<StoredReport> for Report {
    fn from(stored: StoredReport) -> Self {
        match stored {
            StoredReport::Loss(loss) => Self { loss, ..Self::default() },
            StoredReport::Report { loss, values } => Self { loss, values },
        }
    }
}

impl Report {
    /// The mean of each value over the `reports` that have it.
    pub fn mean(reports: &[Self]) -> Self {
        let mean = |value: &dyn Fn(&Self) -> f64| reports.iter().map(value).sum::<f64>() / reports.len() as f64;
        let mut values: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for (name, value) in reports.iter().flat_map(|report| &report.values) {
            let (sum, count) = values.entry(name.clone()).or_default();
            (*sum, *count) = (*sum + value, *count + 1);
        }
        let values = values.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect();
        Self { loss: mean(&|report| report.loss), values }
    }
}

impl Objective {
    /// The factor that all losses of an optimizer step share: 1 / trained tokens, or 1 / preferences. None where a step has none.
    pub fn step_scale(self, micro_batches: &[MicroBatch]) -> Option<f32> {
        let terms = |batch: &MicroBatch| match self {
            Self::Sft | Self::Distill { .. } => batch.labels.len(),
            Self::Preference(_) => batch.answers.len(),
        };
        let terms: usize = micro_batches.iter().map(terms).sum();
        (terms > 0).then(|| 1.0 / terms as f32)
    }

    /// The preference objective, if it is one: its weights follow from the losses of a first pass.
    pub fn preference(self) -> Option<Preference> {
        match self {
            Self::Sft | Self::Distill { .. } => None,
            Self::Preference(preference) => Some(preference),
        }
    }

    /// True if a pass computes the loss by the labels beside its own.
    pub fn has_label_losses(self) -> bool {
        matches!(self, Self::Distill { .. })
    }

    /// The feedback that the data has to hold.
    pub fn feedback(self) -> Feedback {
        match self.preference() {
            None => Feedback::None,
            Some(preference) => preference.feedback(),
        }
    }

    /// The rows of `batch` that go through the head, where all losses of the step share the factor `scale`.
    pub fn head_rows(self, batch: &MicroBatch, scale: f32) -> HeadRows<'_> {
        let weights = batch.label_weights.iter().map(|weight| weight * scale).collect();
        HeadRows { rows: &batch.label_rows, labels: &batch.labels, weights }
    }

    /// The report of a step, from the sum of the losses of `labels` trained tokens.
    pub fn report(self, total_loss: f64, labels: usize) -> Report {
        Report { loss: total_loss / labels as f64, values: BTreeMap::new() }
    }

    /// The report of a step or of an evaluation, from the sums over its preferences.
    pub fn report_of(tally: &Tally) -> Report {
        Report { loss: tally.mean_loss(), values: tally.means() }
    }

    /// The report of an evaluation, from the sums of the losses of `labels` held-out tokens: those of the objective, and those by the
    /// labels alone.
    pub fn evaluation(self, [total_loss, by_labels]: [f64; 2], labels: usize) -> Report {
        let (loss, nll) = (total_loss / labels as f64, by_labels / labels as f64);
        let mut values = BTreeMap::from([("perplexity".to_owned(), nll.exp())]);
        if let Self::Distill { hard_label_share } = self {
            let by_teacher = (loss - hard_label_share * nll) / (1.0 - hard_label_share);
            values.extend([("nll_loss".to_owned(), nll), ("kd_loss".to_owned(), by_teacher)]);
        }
        Report { loss, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_version_0_1_hold_the_loss_alone() {
        let read = |text: &str| serde_json::from_str::<Report>(text).unwrap();
        assert_eq!(read("2.25"), Report { loss: 2.25, ..Report::default() });
        let report = Report { loss: 0.1, values: BTreeMap::from([("margin".to_owned(), 0.3)]) };
        assert_eq!(read(&serde_json::to_string(&report).unwrap()), report);
    }

    #[test]
    fn every_trained_token_of_a_step_weighs_the_same() {
        let batch = |count: u32| MicroBatch {
            label_rows: (0..count).collect(),
            labels: vec![7; count as usize],
            label_weights: vec![1.0; count as usize],
            ..MicroBatch::default()
        };
        let step = [batch(3), batch(4)];
        let scale = Objective::Sft.step_scale(&step).unwrap();
        for micro_batch in &step {
            let rows = Objective::Sft.head_rows(micro_batch, scale);
            assert_eq!((rows.rows, rows.labels), (&*micro_batch.label_rows, &*micro_batch.labels));
            assert!(rows.weights.iter().all(|weight| *weight == 1.0 / 7.0), "{rows:?}");
        }
        assert_eq!(Objective::Sft.step_scale(&[batch(0)]), None);
    }

    #[test]
    fn a_report_is_averaged_name_by_name() {
        let report = |loss, margin| Report { loss, values: BTreeMap::from([("margin".to_owned(), margin)]) };
        assert_eq!(Report::mean(&[report(1.0, 4.0), report(2.0, 8.0)]), report(1.5, 6.0));
        let distill = Objective::Distill { hard_label_share: 0.25 };
        let values = [("kd_loss", 2.0), ("nll_loss", 1.0), ("perplexity", 1f64.exp())];
        let values = values.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(distill.evaluation([7.0, 4.0], 4), Report { loss: 1.75, values: BTreeMap::from(values) });
        assert_eq!(Objective::Sft.report(6.0, 4), Report { loss: 1.5, values: BTreeMap::new() });
    }
}
