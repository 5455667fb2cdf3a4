//! A run's results on their way to log lines and listeners.

use std::collections::VecDeque;

use web_time::Instant;

use super::engine::{Engine, StepResult};
use super::event::Event;
use super::objective::Report;
use super::output::{EvalMetrics, Output, StepMetrics};
use super::settings::RunSettings;
use crate::data::batches::MicroBatch;
use crate::setting::LR;
use crate::{Error, Result};

/// Skipped steps in a row after which a run ends, since its numbers will not recover.
const MAX_SKIPPED: usize = 3;

/// Times at which the results of steps came, with their rows. The speed is taken over the last few, since several
/// results may come at once.
pub(super) struct Speed(VecDeque<(Instant, u64)>);

impl Speed {
    const STEPS: usize = 16;

    pub(super) fn starting_now() -> Self {
        Self(VecDeque::from([(Instant::now(), 0)]))
    }

    fn add(&mut self, rows: u64) {
        self.0.push_back((Instant::now(), rows));
        if self.0.len() > Self::STEPS {
            self.0.pop_front();
        }
    }

    fn rows_per_second(&self) -> f64 {
        let Some(((first, _), (last, _))) = self.0.front().zip(self.0.back()) else { return 0.0 };
        let rows: u64 = self.0.iter().skip(1).map(|(_, rows)| rows).sum();
        rows as f64 / (*last - *first).as_secs_f64().max(1e-9)
    }
}

/// Turns results into log lines and events.
pub(super) struct Observer<'a, L: FnMut(Event<'_>)> {
    pub(super) output: &'a mut Output,
    pub(super) listen: &'a mut L,
    pub(super) settings: RunSettings,
    pub(super) steps: usize,
    pub(super) steps_per_epoch: usize,
    pub(super) gpu_bytes: u64,
    pub(super) tokens: u64,
    /// Reports of the steps since the last logged line.
    pub(super) unlogged: Vec<Report>,
    pub(super) speed: Speed,
    pub(super) skipped_in_a_row: usize,
}

impl<L: FnMut(Event<'_>)> Observer<'_, L> {
    pub(super) fn step(&mut self, result: StepResult) -> Result<()> {
        self.tokens += result.tokens as u64;
        self.speed.add(result.tokens as u64);
        if !result.applied {
            self.skipped_in_a_row += 1;
            (self.listen)(Event::Skipped { step: result.step });
            if self.skipped_in_a_row == MAX_SKIPPED {
                return Err(Error::Training(format!(
                    "loss or gradient were not finite in {MAX_SKIPPED} steps on end, up to step {}: nothing of these steps was \
                     applied; lower {LR}, or look for damaged weights or data",
                    result.step
                )));
            }
            return Ok(());
        }
        self.skipped_in_a_row = 0;
        self.unlogged.push(result.report);
        if !result.step.is_multiple_of(self.settings.log_every) && result.step != self.steps {
            return Ok(());
        }
        let report = Report::mean(&std::mem::take(&mut self.unlogged));
        let settings = &self.settings;
        let metrics = StepMetrics {
            step: result.step,
            epoch: self.epoch(result.step),
            loss: report.loss,
            values: report.values,
            lr: settings.lr * settings.schedule.factor(result.step - 1, settings.warmup_steps, self.steps),
            grad_norm: f64::from(result.grad_norm),
            tokens: self.tokens,
            tokens_per_s: self.speed.rows_per_second(),
            gpu_bytes: self.gpu_bytes,
        };
        self.output.log_step(&metrics)?;
        (self.listen)(Event::Step { metrics: &metrics, steps: self.steps });
        Ok(())
    }

    /// Passes over the data after `step` steps.
    fn epoch(&self, step: usize) -> f64 {
        step as f64 / self.steps_per_epoch as f64
    }

    /// Waits for the results still under way.
    pub(super) async fn drain(&mut self, engine: &mut Engine) -> Result<()> {
        while let Some(result) = engine.next_result().await? {
            self.step(result)?;
        }
        Ok(())
    }

    pub(super) async fn evaluate(
        &mut self,
        engine: &mut Engine,
        batches: &[MicroBatch],
        step: usize,
    ) -> Result<EvalMetrics> {
        let (sum, count) = engine.evaluate(batches).await?;
        let report = engine.objective.evaluation(sum, count);
        if !report.loss.is_finite() {
            return Err(Error::Training(format!(
                "the held-out loss is not finite after step {step}: lower {LR}, or look for damaged weights or data"
            )));
        }
        let metrics = EvalMetrics::new(step, self.epoch(step), report, count);
        self.output.log_evaluation(&metrics)?;
        (self.listen)(Event::Evaluated(&metrics));
        // Evaluation is not training time.
        self.speed = Speed::starting_now();
        Ok(metrics)
    }
}
