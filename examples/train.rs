//! Trains an adapter from code: `cargo run --release --example train -- MODEL_DIR TEXT_FILE OUT_DIR`.

use loraine::gpu::{Gpu, GpuOptions};
use loraine::train::event::{Event, to_the_end};
use loraine::train::prepare::prepare;
use loraine::train::run::{Start, run};
use loraine::train::settings::RunSettings;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("{what} is missing: train MODEL_DIR TEXT_FILE OUT_DIR"));
    let settings = RunSettings {
        model: next("MODEL_DIR")?.into(),
        data: next("TEXT_FILE")?.into(),
        out: next("OUT_DIR")?.into(),
        steps: Some(50),
        lr: 1e-3,
        ..RunSettings::default()
    };
    // Everything that can be refused is refused here, before a device is opened.
    let prepared = prepare(settings)?;
    let gpu = pollster::block_on(Gpu::open(&GpuOptions::default()))?;
    let listen = |event: Event<'_>| {
        if let Event::Step { metrics, steps } = event {
            println!("{}/{steps}: loss {:.4}", metrics.step, metrics.loss);
        }
    };
    let outcome = pollster::block_on(run(prepared, gpu, &Start::default(), to_the_end, listen))?;
    println!("{} steps, see {}", outcome.step, outcome.loss_svg.display());
    Ok(())
}
