// DoRA's factor of each output, magnitude / n, and 1 / n behind it, with n^2 = squares + 2 s B_i . y_i. One invocation per output.

struct Params { outputs: u32, rank: u32, ld: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> squares: array<f32>;
@group(0) @binding(1) var<storage, read> magnitudes: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> factors: array<f32>;
@group(0) @binding(5) var<storage, read_write> inverses: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

// A row of zeros has no direction: its output is 0 whatever its factor.
const LEAST: f32 = 1e-30;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if i >= params.outputs { return; }
    var product = 0.0;
    for (var k = 0u; k < params.rank; k++) { product += b[i * params.rank + k] * y[k * params.ld + i]; }
    let inverse = 1.0 / sqrt(max(squares[i] + 2.0 * params.scale * product, LEAST));
    factors[i] = magnitudes[i] * inverse;
    inverses[i] = inverse;
}
