// RMSNorm's factor of each row, 1 / sqrt(mean(x^2) + eps): one workgroup per row.

struct Params { rows: u32, cols: u32, ld: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> scales: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    var squares = 0.0;
    for (var i = lane; i < params.cols; i += WG_SIZE) {
        let v = x[row * params.ld + i];
        squares += v * v;
    }
    let scale = inverseSqrt(workgroup_sum(squares, lane) / f32(params.cols) + params.eps);
    if lane == 0u { scales[row] = scale; }
}
