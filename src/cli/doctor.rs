//! `loraine doctor`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use loraine::doctor::{self, Check, Outcome, Report, Subject};
use loraine::model::shapes;

use super::args::gpu::GpuArgs;
use super::args::tune::TuneArgs;
use super::estimate;
use super::info::print_gpu;

/// Rows of the micro-batch: enough to fill a GPU, and few enough for a software adapter.
const ROWS: usize = 1024;
const FEW_ROWS: usize = 128;

/// Check every kernel on this machine's own driver: right results, and the speed that the device can reach
#[derive(Args)]
#[command(
    after_help = "Each kernel that this device chooses runs at the sizes of a model, is compared with the same formula on the CPU, and is
timed. The share is of what the device reached in multiply-adds or copies in the same run. The exit code is 1 where a
kernel is wrong, refused by the driver, or loses the device. Attach the report to an issue about a GPU.

Examples:
  loraine doctor
  loraine doctor --quick --json report.json
  loraine doctor --model qwen3-0.6b --matrix-units on"
)]
pub struct DoctorArgs {
    /// Model whose sizes the kernels run at: a directory, config.json, or the name of a published model [default: llama-3.2-1b, on a
    /// software adapter smollm2-135m]
    #[arg(long, value_name = "DIR|FILE|NAME")]
    model: Option<String>,
    /// Smaller sizes, and only the weight formats that runs use most
    #[arg(long)]
    quick: bool,
    /// Write the report to this JSON file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    gpu: GpuArgs,
    #[command(flatten)]
    tune: TuneArgs,
}

pub fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let gpu = args.gpu.open_tuned(args.tune.options(None))?;
    let small = args.quick || gpu.capabilities.cpu;
    let (name, config) = match &args.model {
        Some(name) => (name.as_str(), estimate::model(name)?.0),
        None => {
            let name = if small { "smollm2-135m" } else { "llama-3.2-1b" };
            (name, shapes::by_name(name)?)
        }
    };
    let subject =
        Subject { name: name.to_owned(), config, rows: if small { FEW_ROWS } else { ROWS }, quick: args.quick };
    let report = pollster::block_on(doctor::examine(gpu, &subject, |case| eprintln!("checking {case}")))?;
    print(&report);
    if let Some(path) = &args.json {
        loraine::files::write_atomically(path, serde_json::to_string_pretty(&report)?.as_bytes())
            .with_context(|| format!("{}: cannot be written", path.display()))?;
    }
    verdict(&report)
}

/// An error where a check failed, for the exit code.
fn verdict(report: &Report) -> anyhow::Result<()> {
    let (checks, adapter) = (report.checks.len(), &report.adapter);
    let failed = report.checks.iter().filter(|check| check.failed()).count();
    if failed > 0 {
        bail!("{failed} of {checks} checks failed on {} ({} {})", adapter.name, adapter.driver, adapter.driver_info);
    }
    Ok(())
}

fn print(report: &Report) {
    out!("loraine {} on {}", report.version, report.system);
    print_gpu(&report.adapter, false);
    let ceilings = &report.ceilings;
    out!(
        "   ceilings    {:.1} GFLOP/s multiply-add in f32, {:.1} GB/s copied, {:.2} us a dispatch",
        ceilings.fma_gflops,
        ceilings.copy_gb_per_s,
        ceilings.dispatch_us
    );
    if let Some(gflops) = ceilings.matrix_gflops {
        out!("               {gflops:.1} GFLOP/s by cooperative matrices of f16 with sums in f32");
    }
    out!("\nkernels at the sizes of {}, {} rows", report.model, report.rows);
    out!("{:<64} {:>7} {:>8} {:>10} {:>16} {:>7}", "operation", "result", "error", "ms", "achieved", "share");
    report.checks.iter().for_each(print_check);
    out!("");
    report.findings.iter().for_each(|finding| out!("{finding}"));
    if report.healthy() {
        out!("{} checks, no fault", report.checks.len());
    }
}

fn print_check(check: &Check) {
    let result = match check.outcome {
        Outcome::Right => "right",
        Outcome::Wrong => "WRONG",
        Outcome::Refused => "REFUSED",
        Outcome::Lost => "LOST",
        Outcome::Skipped => "skipped",
    };
    let error = check.error.map_or("-".to_owned(), |error| format!("{error:.0e}"));
    let achieved =
        if check.gflops > 0.0 { format!("{:.1} GFLOP/s", check.gflops) } else { format!("{:.1} GB/s", check.gb_per_s) };
    let share = 100.0 * check.share_of_ceiling;
    out!("{:<64} {result:>7} {error:>8} {:>10.3} {achieved:>16} {share:>6.1}%", check.name, check.ms);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_an_error_and_a_slow_one_is_not() {
        let gpus = pollster::block_on(loraine::gpu::adapters());
        let report = |outcome, slow| Report {
            version: "",
            system: String::new(),
            adapter: gpus[0].clone(),
            matrix_units: false,
            checked_shaders: false,
            model: String::new(),
            rows: 1,
            ceilings: loraine::bench::Ceilings {
                fma_gflops: 1.0,
                matrix_gflops: None,
                copy_gb_per_s: 1.0,
                dispatch_us: 1.0,
            },
            checks: vec![Check { outcome, slow, ..Check::default() }],
            unchecked: Vec::new(),
            findings: Vec::new(),
        };
        assert!(verdict(&report(Outcome::Right, true)).is_ok() && verdict(&report(Outcome::Skipped, false)).is_ok());
        for outcome in [Outcome::Wrong, Outcome::Refused, Outcome::Lost] {
            let problem = verdict(&report(outcome, false)).unwrap_err().to_string();
            assert!(problem.starts_with("1 of 1 checks failed on "), "{problem}");
        }
    }
}
