//! Burn's f32 matrix product on wgpu, at the size of the bench's linear layer: `y [1024, 2048] = x [1024, 2048] w [2048, 2048]`.
//! Prints one JSON object.

use std::error::Error;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};

const SHAPE: [usize; 3] = [1024, 2048, 2048];
const REPETITIONS: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let [rows, depth, cols] = SHAPE;
    let device = Device::wgpu(Default::default());
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Default, &device);
    let (x, w) = (random([rows, depth]), random([depth, cols]));
    let mut best = f64::INFINITY;
    // The first ones choose a kernel and compile it.
    for repetition in 0..REPETITIONS {
        device.sync()?;
        let started = Instant::now();
        let y = x.clone().matmul(w.clone());
        device.sync()?;
        if repetition >= 2 {
            best = best.min(started.elapsed().as_secs_f64());
        }
        drop(y);
    }
    let gflops = 2.0 * (rows * depth * cols) as f64 / best / 1e9;
    println!(r#"{{"peer": "burn", "ms": {:.2}, "gflops": {gflops:.2}}}"#, best * 1e3);
    Ok(())
}
