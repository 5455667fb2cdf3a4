//! Signs that a run goes wrong, and settings that seldom work. Every message says what it means and what to try.

use serde::Serialize;

use super::settings::{Method, ObjectiveChoice, RunSettings};
use crate::setting::{EPOCHS, EVAL_DATA, LR, STEPS};

/// The kind of a [`Warning`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
#[serde(rename_all = "kebab-case")]
pub enum WarningKind {
    /// The learning rate is far above those that work for most models.
    HighLearningRate,
    /// The data have so few examples that the model learns them by heart.
    FewExamples,
    /// The run has a single step.
    OneStep,
    /// Some target modules are not in the model.
    MissingTargets,
    /// The smoothed training loss rose.
    TrainingLossRose,
    /// The validation loss ended above its start or above its lowest value.
    ValidationLossRose,
    /// Steps were skipped because their numbers were not finite.
    SkippedSteps,
}

/// A sentence for the user; settings in it are placeholders as in errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct Warning {
    /// What it warns about.
    pub kind: WarningKind,
    /// A sentence with what it means and what to try.
    pub message: String,
}

impl Warning {
    pub(super) fn new(kind: WarningKind, message: String) -> Self {
        Self { kind, message }
    }
}

/// What a run has measured so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// Logged training losses as (step, loss).
    pub steps: Vec<(usize, f64)>,
    /// Validation losses as (step, loss).
    pub evals: Vec<(usize, f64)>,
    /// Steps that were skipped because their numbers were not finite.
    pub skipped: Vec<usize>,
}

/// Fewer examples than this are learned by heart.
const FEW_EXAMPLES: usize = 10;
/// Models below this number of parameters take higher learning rates.
const SMALL_MODEL: u64 = 50_000_000;
/// A validation loss that rose by less than this share is taken as unchanged.
const UNCHANGED: f64 = 0.002;
/// A validation loss above its lowest by this share is overfitting.
const OVERFITTED: f64 = 0.02;
/// Fewer losses than this say nothing about the course of a run, except where the learning rate is high.
const SHORT_RUN: usize = 8;

/// The learning rate above which a run often ruins its model.
fn high_learning_rate(settings: &RunSettings, parameters: u64) -> f64 {
    match settings.method {
        _ if parameters < SMALL_MODEL || settings.from_scratch => 1e-2,
        Method::Lora | Method::Qlora
            if !matches!(settings.objective, ObjectiveChoice::Sft | ObjectiveChoice::Distill) =>
        {
            2e-4
        }
        Method::Full => 2e-4,
        Method::Lora | Method::Qlora => 2e-3,
    }
}

/// The learning rate that is usual for the method.
fn usual_learning_rate(settings: &RunSettings) -> f64 {
    let usual = settings.objective.default_lr();
    if settings.method == Method::Full { usual / 10.0 } else { usual }
}

/// Hints at settings that seldom work, before a run of `steps` steps over `examples` examples. `parameters` counts those of the base.
pub fn hints(settings: &RunSettings, parameters: u64, examples: usize, steps: usize) -> Vec<Warning> {
    let mut hints = Vec::new();
    let high = high_learning_rate(settings, parameters);
    if settings.lr > high {
        let (now, usual) = (settings.lr, usual_learning_rate(settings));
        let message = format!("{LR} is {now}; values above {high} often ruin the model, {usual} is usual");
        hints.push(Warning::new(WarningKind::HighLearningRate, message));
    }
    if examples < FEW_EXAMPLES {
        let message = match examples {
            1 => "there is 1 example: the model can only learn it by heart".to_owned(),
            _ => format!("there are only {examples} examples: the model will learn them by heart"),
        };
        let message = format!("{message}; some hundred examples teach a style");
        hints.push(Warning::new(WarningKind::FewExamples, message));
    }
    if steps == 1 {
        let message = format!("the run has 1 step, which changes the model hardly at all; set {EPOCHS} or {STEPS}");
        hints.push(Warning::new(WarningKind::OneStep, message));
    }
    hints
}

/// The signs that a run has gone wrong, from everything that it has measured. `parameters` and `vocabulary` are those of the base.
pub fn diagnose(settings: &RunSettings, parameters: u64, vocabulary: usize, curves: &Curves) -> Vec<Warning> {
    let high = settings.lr > high_learning_rate(settings, parameters);
    let mut warnings = Vec::new();
    let losses: Vec<f64> = curves.steps.iter().map(|(_, loss)| *loss).collect();
    if let Some(sentence) = training_loss_rose(&losses, vocabulary, high) {
        let message = format!("{sentence}; lower {LR} ({})", now_and_usual(settings));
        warnings.push(Warning::new(WarningKind::TrainingLossRose, message));
    }
    // The result of a run that keeps its best step is of that step.
    let lowest = |best: usize, at: usize| if curves.evals[at].1 < curves.evals[best].1 { at } else { best };
    let evals = match settings.keeps_best() && curves.evals.len() > 2 {
        true => &curves.evals[..=(2..curves.evals.len()).fold(1, lowest)],
        false => &curves.evals[..],
    };
    if let Some(sentence) = validation_loss_rose(evals) {
        let advice = match high {
            true => format!("lower {LR} ({})", now_and_usual(settings)),
            false => format!("take fewer steps, more data, or a lower {LR} ({})", now_and_usual(settings)),
        };
        warnings.push(Warning::new(WarningKind::ValidationLossRose, format!("{sentence}; {advice}")));
    }
    if !curves.skipped.is_empty() {
        let message = format!(
            "{}, because loss or gradient were not finite; lower {LR} ({}), or look for damaged weights or data",
            skipped_sentence(&curves.skipped),
            now_and_usual(settings)
        );
        warnings.push(Warning::new(WarningKind::SkippedSteps, message));
    }
    warnings
}

fn now_and_usual(settings: &RunSettings) -> String {
    let (now, usual) = (settings.lr, usual_learning_rate(settings));
    if now > usual { format!("now {now}, {usual} is usual") } else { format!("now {now}") }
}

/// `1 step was skipped (step 3)`, with at most five of the steps.
pub(super) fn skipped_sentence(skipped: &[usize]) -> String {
    let listed: Vec<String> = skipped.iter().take(5).map(usize::to_string).collect();
    let (listed, more) = (listed.join(", "), if skipped.len() > 5 { ", ..." } else { "" });
    match skipped.len() {
        1 => format!("1 step was skipped (step {listed})"),
        count => format!("{count} steps were skipped (steps {listed}{more})"),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The deviation of a single loss from the course of the curve, from the median of the differences between neighbors, which single
/// spikes do not move. 0.954 is that median for normally distributed values of deviation 1.
fn noise(losses: &[f64]) -> f64 {
    let mut differences: Vec<f64> = losses.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    differences.sort_by(f64::total_cmp);
    differences.get(differences.len() / 2).map_or(0.0, |median| median / 0.954)
}

/// A sentence about a training loss that rose beyond its noise: above its start, above its lowest, or above that of random guessing.
/// `high` says that the learning rate is unusually high, so that a few losses suffice.
fn training_loss_rose(losses: &[f64], vocabulary: usize, high: bool) -> Option<String> {
    let (first, count) = (*losses.first()?, losses.len());
    let end = mean(&losses[count - (count / 8).clamp(1, 25)..]);
    let highest = losses[1..].windows(2.min(count - 1).max(1)).map(mean).fold(f64::NEG_INFINITY, f64::max);
    let chance = (vocabulary as f64).ln();
    if highest > 1.05 * chance && first < 0.95 * chance && end > first {
        return Some(format!(
            "the training loss rose from {first:.2} to {highest:.2}, above the {chance:.2} of random guessing: the model is ruined"
        ));
    }
    let rose = |from: f64, to: f64| {
        Some(format!("the training loss rose from {from:.2} to {to:.2}: the steps are too large, or the data changed"))
    };
    if count < SHORT_RUN {
        let end = mean(&losses[count.div_ceil(2)..]);
        return rose(first, end).filter(|_| high && count > 2 && end > 1.3 * first);
    }
    // The noise of the difference between two means over `window` losses, four times.
    let beyond = |reference: f64, window: usize| {
        reference + (0.1 * reference.abs()).max(4.0 * noise(losses) * (2.0 / window as f64).sqrt())
    };
    let window = (count / 5).clamp(1, 20);
    let (start, end) = (mean(&losses[..window]), mean(&losses[count - window..]));
    if end > beyond(start, window) {
        return rose(start, end);
    }
    let window = (count / 8).clamp(4, 25);
    if count < 4 * window {
        return None;
    }
    let end = mean(&losses[count - window..]);
    let lowest = losses.windows(window).map(mean).fold(f64::INFINITY, f64::min);
    rose(lowest, end).filter(|_| end > beyond(lowest, window))
}

/// A sentence about a validation loss that ended above its start or above its lowest.
fn validation_loss_rose(evals: &[(usize, f64)]) -> Option<String> {
    let [(_, first), .., (_, last)] = evals else { return None };
    if *last > first * (1.0 + UNCHANGED) {
        return Some(format!(
            "the validation loss rose from {first:.4} to {last:.4}: the model predicts unseen text worse than before training"
        ));
    }
    let (step, lowest) = evals.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    (*last > lowest * (1.0 + OVERFITTED)).then(|| {
        format!(
            "the validation loss rose again, from {lowest:.4} after step {step} to {last:.4}: the model learns its data by heart"
        )
    })
}

/// The hint about data of which nothing is held out, so that only the training loss tells how a run goes.
pub fn nothing_held_out(examples: usize, needed: usize) -> String {
    let count = if examples == 1 { "1 example is".to_owned() } else { format!("{examples} examples are") };
    format!(
        "{count} too few to hold a part out for validation ({needed} or more are needed); {EVAL_DATA} takes other data"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, uniform};

    const LARGE: u64 = 135_000_000;

    fn with_lr(lr: f64) -> RunSettings {
        RunSettings { lr, ..RunSettings::default() }
    }

    fn kinds(warnings: &[Warning]) -> Vec<WarningKind> {
        warnings.iter().map(|warning| warning.kind).collect()
    }

    /// Losses on a line from `from` to `to`, with uniform noise of this width.
    fn noisy(count: usize, from: f64, to: f64, width: f64, seed: u64) -> Vec<(usize, f64)> {
        let value = |i: usize| {
            let share = i as f64 / (count - 1).max(1) as f64;
            let noise = f64::from(uniform(seed, Stream::Sampling, 0, i as u64)) - 0.5;
            (i + 1, from + (to - from) * share + width * noise)
        };
        (0..count).map(value).collect()
    }

    fn found(lr: f64, steps: &[(usize, f64)], evals: &[(usize, f64)]) -> Vec<WarningKind> {
        let curves = Curves { steps: steps.to_vec(), evals: evals.to_vec(), skipped: Vec::new() };
        kinds(&diagnose(&with_lr(lr), LARGE, 49152, &curves))
    }

    #[test]
    fn unusual_settings_are_hinted_at() {
        let of =
            |settings: &RunSettings, parameters, examples, steps| kinds(&hints(settings, parameters, examples, steps));
        assert_eq!(of(&RunSettings::default(), LARGE, 1000, 250), []);
        assert_eq!(of(&with_lr(1e-2), LARGE, 1000, 250), [WarningKind::HighLearningRate]);
        // The built-in model takes such a rate.
        assert_eq!(of(&with_lr(3e-3), 800_000, 800, 250), []);
        assert_eq!(of(&with_lr(1.0), 260_000, 800, 250), [WarningKind::HighLearningRate]);
        let dpo = |lr| RunSettings { objective: ObjectiveChoice::Dpo, ..with_lr(lr) };
        assert_eq!(of(&dpo(1e-3), LARGE, 1000, 250), [WarningKind::HighLearningRate]);
        assert_eq!(of(&dpo(2e-5), LARGE, 1000, 250), []);
        let full = |lr| RunSettings { method: Method::Full, ..with_lr(lr) };
        assert_eq!(of(&full(5e-4), LARGE, 1000, 250), [WarningKind::HighLearningRate]);
        assert_eq!(of(&full(1e-4), LARGE, 1000, 250), []);
        assert_eq!(of(&with_lr(1e-4), LARGE, 1, 1), [WarningKind::FewExamples, WarningKind::OneStep]);
        assert_eq!(of(&with_lr(1e-4), LARGE, 9, 3), [WarningKind::FewExamples]);
    }

    #[test]
    fn good_runs_are_not_warned_about() {
        for seed in 0..40 {
            // Falling, flat, and short runs, with the noise of small batches.
            for (count, from, to, width) in [
                (339, 2.4, 1.8, 1.2),
                (60, 2.4, 2.2, 1.0),
                (200, 1.5, 1.5, 0.8),
                (12, 2.4, 2.3, 0.8),
                (3, 2.4, 2.3, 1.0),
            ] {
                let steps = noisy(count, from, to, width, seed);
                assert_eq!(found(2e-4, &steps, &[(0, 2.4), (count, 2.3)]), [], "{count} steps, seed {seed}");
            }
        }
        assert_eq!(found(2e-4, &[], &[]), []);
        assert_eq!(found(2e-4, &[(1, 2.0)], &[(0, 2.0)]), []);
        assert_eq!(found(2e-4, &[(1, 2.0)], &[(0, 2.0), (1, 2.001)]), []);
    }

    #[test]
    fn ruined_runs_are_warned_about() {
        use WarningKind::{TrainingLossRose, ValidationLossRose};
        // `--lr 1` on a model with a vocabulary of 512.
        let steps: Vec<(usize, f64)> = [4.3, 8.8, 10.9, 6.1].into_iter().enumerate().map(|(i, l)| (i + 1, l)).collect();
        let curves = Curves { steps, ..Curves::default() };
        assert_eq!(kinds(&diagnose(&with_lr(1.0), 260_000, 512, &curves)), [TrainingLossRose]);
        // One that comes down to random guessing again.
        let losses = [5.5, 11.9, 12.9, 11.0, 7.0, 9.5, 7.2, 6.6, 6.2, 6.3, 6.2, 6.0];
        let steps: Vec<(usize, f64)> = losses.into_iter().enumerate().map(|(i, l)| (i + 1, l)).collect();
        for count in 2..=steps.len() {
            let curves = Curves { steps: steps[..count].to_vec(), ..Curves::default() };
            assert_eq!(kinds(&diagnose(&with_lr(1.0), 260_000, 512, &curves)), [TrainingLossRose], "{count} steps");
        }
        // The training loss falls, the validation loss does not.
        assert_eq!(found(1e-2, &noisy(100, 2.4, 1.0, 1.5, 1), &[(0, 2.39), (100, 4.1)]), [ValidationLossRose]);
        // Overfitting: the validation loss falls and rises again.
        assert_eq!(found(2e-4, &[], &[(0, 2.4), (50, 1.8), (100, 2.0)]), [ValidationLossRose]);
        for seed in 0..20 {
            // Above its start; and down, then up again, but not above its start.
            assert_eq!(found(2e-4, &noisy(200, 1.8, 2.6, 0.8, seed), &[]), [TrainingLossRose], "seed {seed}");
            let mut steps = noisy(150, 2.4, 1.0, 0.5, seed);
            steps.extend(noisy(150, 1.0, 2.0, 0.5, seed + 100));
            assert_eq!(found(2e-4, &steps, &[]), [TrainingLossRose], "seed {seed}");
        }
    }

    #[test]
    fn skipped_steps_are_named() {
        let curves = Curves { skipped: vec![3], ..Curves::default() };
        let [warning] = &diagnose(&with_lr(2e-4), LARGE, 512, &curves)[..] else { panic!("one warning") };
        assert_eq!(warning.kind, WarningKind::SkippedSteps);
        assert!(warning.message.starts_with("1 step was skipped (step 3)"), "{}", warning.message);
        assert_eq!(skipped_sentence(&[1, 2, 3, 4, 5, 6]), "6 steps were skipped (steps 1, 2, 3, 4, 5, ...)");
    }
}
