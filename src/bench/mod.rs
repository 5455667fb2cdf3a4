//! The bench: an adapter's ceilings, the operations at real shapes as shares of them, and whole training steps on models of random
//! weights. Everything is measured in one run on one adapter, so that the ratios hold even on a busy machine.

mod ceilings;
mod figures;
mod kernels;
mod lengths;
mod operations;
mod report;
mod steps;

use crate::Result;
use crate::gpu::Gpu;
use crate::train::settings::RunSettings;

pub use ceilings::Ceilings;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use ceilings::Probe;
pub use figures::{Figure, Peer, figures};
pub use kernels::kernels;
pub use lengths::LengthResult;
pub use operations::OperationResult;
pub use report::Report;
pub use steps::{Shape, StepResult};

/// Runs the whole bench. `progress` is called with the name of each measurement before it begins. `quick` leaves out the larger
/// shapes. `settings` apply to the training steps.
///
/// # Errors
/// A failing device, or too little memory for a shape.
pub async fn run(
    gpu: Gpu,
    shapes: &[Shape],
    settings: &RunSettings,
    quick: bool,
    mut progress: impl FnMut(&str),
) -> Result<Report> {
    progress("ceilings");
    let mut probe = ceilings::Probe::new(&gpu).await?;
    let mut measured = Vec::new();
    for case in operations::cases(quick) {
        progress(&format!("{} {}", case.name, case.shape));
        measured.push(case.measure(&gpu, &mut probe).await?);
    }
    let (name, driver) = (gpu.adapter.name.clone(), format!("{} {}", gpu.adapter.driver, gpu.adapter.driver_info));
    let lengths = lengths::measure(gpu.capabilities)?;
    let mut trained = Vec::new();
    // Each model has its own engine, which returns the device when it is done.
    let mut device = gpu;
    for shape in shapes {
        progress(&format!("training steps of {} {}", shape.name, shape.batch()));
        let step;
        (step, device) = steps::measure(device, shape, settings).await?;
        probe.refresh(&device).await?;
        trained.push(step);
    }
    let ceilings = probe.ceilings;
    let operations = measured.into_iter().map(|case| case.result(&ceilings)).collect();
    let steps = trained.into_iter().map(|step| step.with_ceiling(&ceilings)).collect();
    Ok(Report { gpu: name, driver, ceilings, operations, steps, lengths })
}
