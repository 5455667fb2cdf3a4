//! A run's results on their way to log lines and listeners.

use std::collections::VecDeque;

use web_time::{Duration, Instant};

use super::diagnosis::{Curves, Warning, WarningKind, diagnose};
use super::engine::{Engine, StepResult};
use super::evaluate::evaluation;
use super::event::{Event, Phase};
use super::group::Work;
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

    /// Leaves out `time` in which no step was made.
    pub(super) fn leave_out(&mut self, time: Duration) {
        self.0.iter_mut().for_each(|(moment, _)| *moment += time);
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
    /// Parameters and vocabulary of the base.
    pub(super) parameters: u64,
    pub(super) vocabulary: usize,
    pub(super) curves: Curves,
    /// The number of logged losses at which the curves are looked at next; None once the watcher was warned.
    pub(super) next_look: Option<usize>,
}

impl<L: FnMut(Event<'_>)> Observer<'_, L> {
    pub(super) fn step(&mut self, result: StepResult) -> Result<()> {
        self.tokens += result.tokens as u64;
        self.speed.add(result.tokens as u64);
        if !result.applied {
            self.skipped_in_a_row += 1;
            self.curves.skipped.push(result.step);
            self.output.log_skipped(result.step)?;
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
            lr: settings.lr * settings.decay(self.steps).factor(result.step - 1, self.steps),
            grad_norm: f64::from(result.grad_norm),
            tokens: self.tokens,
            tokens_per_s: self.speed.rows_per_second(),
            gpu_bytes: self.gpu_bytes,
        };
        self.output.log_step(&metrics)?;
        (self.listen)(Event::Step { metrics: &metrics, steps: self.steps });
        self.curves.steps.push((metrics.step, metrics.loss));
        // Ever more seldom, since each look costs as much as there are losses.
        let count = self.curves.steps.len();
        if self.next_look.is_some_and(|next| count >= next) {
            self.next_look = Some(count + (count / 10).max(1));
            self.warn(result.step);
        }
        Ok(())
    }

    /// Tells the watcher once that the run goes wrong. What is to be said after the last step stands in the run's outcome.
    fn warn(&mut self, step: usize) {
        if self.next_look.is_none() || step >= self.steps {
            return;
        }
        if let Some(warning) = self.warnings().iter().find(|warning| warning.kind != WarningKind::SkippedSteps) {
            self.next_look = None;
            (self.listen)(Event::Warning(warning));
        }
    }

    /// The signs so far that the run goes wrong.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        diagnose(&self.settings, self.parameters, self.vocabulary, &self.curves)
    }

    /// Compiles the kernels that the next step needs. The time that this takes is not training time.
    pub(super) async fn compile(&mut self, engine: &mut Engine, batches: &[MicroBatch]) -> Result<()> {
        let (mut started, listen) = (None, &mut self.listen);
        let progress = |done, total| {
            started.get_or_insert_with(Instant::now);
            listen(Event::Phase(Phase::Compiling { done, total }));
        };
        engine.compile(batches, true, progress).await?;
        if let Some(started) = started {
            self.speed.leave_out(started.elapsed());
        }
        Ok(())
    }

    /// Takes the results that have come, without waiting.
    pub(super) async fn take_ready(&mut self, engine: &mut Engine) -> Result<()> {
        while let Some(result) = engine.ready_result().await? {
            self.step(result)?;
        }
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
        let listen = &mut self.listen;
        engine.begin_together(Work::Evaluation)?;
        let (report, count) = evaluation(engine, batches, |phase| listen(Event::Phase(phase))).await?;
        if !report.loss.is_finite() {
            return Err(Error::Training(format!(
                "the validation loss is not finite after step {step}: lower {LR}, or look for damaged weights or data"
            )));
        }
        let metrics = EvalMetrics::new(step, self.epoch(step), report, count);
        self.output.log_evaluation(&metrics)?;
        (self.listen)(Event::Evaluated(&metrics));
        self.curves.evals.push((step, metrics.eval_loss));
        self.warn(step);
        // Evaluation is not training time.
        self.speed = Speed::starting_now();
        Ok(metrics)
    }
}
