//! The doctor: every kernel that a device chooses for a model, compared with its CPU twin on the user's own driver, and timed against the
//! device's measured ceilings. The report says what is wrong or suspiciously slow, and can be attached to an issue.

mod attention;
mod cases;
mod dora;
mod experts;
mod linear;
mod linear_attention;
mod report;
mod subject;
#[cfg(test)]
mod tests;
mod trial;

use std::collections::BTreeSet;

use crate::bench::{Ceilings, Probe};
use crate::gpu::{Command, Dispatch, Gpu, GpuError};
use crate::{Result, tune};

pub use report::{Check, Outcome, Report};
pub use subject::Subject;
use trial::{Case, Trial};

/// Measurements of each case; the shortest counts.
const REPETITIONS: usize = 3;
/// Losses of the device after which the rest is not tried.
const MOST_LOSSES: usize = 3;

/// A change of a case's recorded dispatches, with which tests play a wrong kernel.
type Fault<'a> = &'a dyn Fn(&str, &mut Vec<Command>);

/// Examines a device. `progress` is called with the name of each case before it begins.
///
/// A wrong or refused kernel, or a lost device, is no error but an entry of the report.
///
/// # Errors
/// A device whose ceilings cannot be measured, or that cannot be opened again after a loss.
pub async fn examine(gpu: Gpu, subject: &Subject, mut progress: impl FnMut(&str)) -> Result<Report> {
    examine_with(gpu, subject, &mut progress, &|_, _| {}).await
}

async fn examine_with(
    mut gpu: Gpu,
    subject: &Subject,
    progress: &mut dyn FnMut(&str),
    fault: Fault<'_>,
) -> Result<Report> {
    progress("ceilings");
    let ceilings = Probe::new(&gpu).await?.ceilings;
    let mut checks = Vec::new();
    let mut checked = BTreeSet::new();
    let mut losses = 0;
    for case in cases::all(subject, &gpu.capabilities) {
        progress(&case.name);
        let check = check(&gpu, &case, &ceilings, fault, &mut checked).await;
        if check.outcome == Outcome::Lost {
            losses += 1;
            if losses < MOST_LOSSES {
                gpu = Gpu::open(&gpu.options().clone()).await?;
            }
        }
        checks.push(check);
        if losses == MOST_LOSSES {
            break;
        }
    }
    let needed = subject.kernels(gpu.capabilities)?;
    let unchecked = needed.difference(&checked).map(|name| (*name).to_owned()).collect();
    Ok(Report::new(&gpu, subject, ceilings, checks, unchecked))
}

/// Runs one case. Its kernels' names join `checked`.
async fn check(
    gpu: &Gpu,
    case: &Case,
    ceilings: &Ceilings,
    fault: Fault<'_>,
    checked: &mut BTreeSet<&'static str>,
) -> Check {
    let mut check = Check { name: case.name.clone(), ..Check::default() };
    match compare(gpu, case, ceilings, fault, checked, &mut check).await {
        Ok(()) => {}
        Err(error) => {
            check.outcome = match &error {
                crate::Error::Gpu(GpuError::Lost(_)) => Outcome::Lost,
                crate::Error::Gpu(GpuError::OutOfMemory { .. } | GpuError::LimitTooSmall { .. }) => Outcome::Skipped,
                _ => Outcome::Refused,
            };
            check.problem = error.to_string();
        }
    }
    check
}

async fn compare(
    gpu: &Gpu,
    case: &Case,
    ceilings: &Ceilings,
    fault: Fault<'_>,
    checked: &mut BTreeSet<&'static str>,
    check: &mut Check,
) -> Result<()> {
    // The first recording tells which kernels there are to choose from.
    let mut trial = Trial::new(gpu.capabilities, Default::default());
    trial.amount = (case.record)(&mut trial);
    let problems = std::mem::take(&mut trial.rec.problem_sizes);
    let chosen = tune::choices(gpu, &problems).await?;
    if chosen != Default::default() {
        trial = Trial::new(gpu.capabilities, chosen);
        trial.amount = (case.record)(&mut trial);
    }
    let amount = trial.amount;
    let mut commands = std::mem::take(&mut trial.rec.commands);
    check.kernels = dispatches(&commands).map(|dispatch| dispatch.kernel.variant()).collect();
    check.kernels.dedup();
    checked.extend(dispatches(&commands).map(|dispatch| dispatch.kernel.name));
    fault(&case.name, &mut commands);
    trial.rec.commands = commands;
    let (harness, expected) = trial.into_parts();
    let mut prepared = harness.prepare(gpu).await?;
    prepared.run(gpu).await?;
    check.outcome = Outcome::Right;
    let (mut nearest, mut problems) = (0.0, Vec::new());
    for expected in expected {
        let bytes = prepared.read(gpu, expected.view).await?;
        let (name, bound) = (expected.name, expected.bound);
        let error = expected.error(&bytes);
        // Exact results have no bound to be near to.
        let nearness = error / bound.max(f64::MIN_POSITIVE);
        if nearness > nearest || check.error.is_none() {
            nearest = nearness;
            (check.error, check.bound) = (Some(error).filter(|error| error.is_finite()), bound);
        }
        if error > bound {
            problems.push(describe(name, error, bound));
        }
    }
    if !problems.is_empty() {
        // The time of a wrong kernel says nothing.
        check.outcome = Outcome::Wrong;
        check.problem = problems.join("; ");
        return Ok(());
    }
    prepared.calibrate(gpu).await?;
    let seconds = prepared.seconds(gpu, REPETITIONS).await?;
    check.time(seconds, amount, ceilings);
    Ok(())
}

fn describe(name: &str, error: f64, bound: f64) -> String {
    if error.is_finite() {
        format!("{name} is off by {error:.1e}, and may be by {bound:.0e}")
    } else {
        format!("{name} has values that are not finite")
    }
}

fn dispatches(commands: &[Command]) -> impl Iterator<Item = &Dispatch> {
    commands.iter().filter_map(|command| match command {
        Command::Dispatch(dispatch) => Some(dispatch),
        Command::Copy { .. } | Command::Clear(_) => None,
    })
}
