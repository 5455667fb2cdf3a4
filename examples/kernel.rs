//! One kernel by hand: plan memory, record a dispatch, run it, read the result. `cargo run --example kernel`.

use loraine::gpu::{Buffers, Category, Gpu, GpuOptions, MemoryPlan, Recorder, Scratch, params_bytes};
use loraine::ops::rms_norm::{self, NormConstants};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gpu = pollster::block_on(Gpu::open(&GpuOptions::default()))?;

    // The plan is plain data: what it says is what will be allocated.
    let mut plan = MemoryPlan::new();
    let (rows, cols) = (2, 4);
    let x = plan.matrix(Category::Workspace, "x", rows, cols);
    let y = plan.matrix(Category::Workspace, "y", rows, cols);
    let gain = plan.alloc(Category::Weights, "gain", 4 * u64::from(cols));
    let [unused, unused_write, scratch] = [(); 3].map(|()| plan.alloc(Category::Workspace, "unused", 16));

    // So is the list of commands.
    let scratch = Scratch { weight_panel: scratch, partials: scratch };
    let mut rec = Recorder::new(gpu.capabilities, unused, unused_write, scratch);
    let norm = NormConstants { eps: 1e-5, gain_offset: 0.0 };
    rms_norm::forward(&mut rec, x, gain, norm, y);
    let uniform = plan.alloc(Category::Uploads, "parameters", params_bytes(&rec.commands));

    let mut buffers = Buffers::default();
    pollster::block_on(gpu.allocate(&plan, &mut buffers))?;
    gpu.write(&buffers, x.view, bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0, 1.0]));
    gpu.write(&buffers, gain, bytemuck::cast_slice(&[1.0f32; 4]));
    let list = gpu.prepare(&rec.commands, &buffers, uniform)?;
    gpu.run(&list, &mut buffers)?;
    let values = pollster::block_on(gpu.read_f32(&buffers, y.view))?;
    println!("on {}: {values:?}", gpu.adapter.name);
    Ok(())
}
