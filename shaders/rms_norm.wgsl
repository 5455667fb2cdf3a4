// RMSNorm forward: one workgroup per row; with ADD, `delta` is added to the row first, and the sum is kept.

struct Params { rows: u32, cols: u32, ld4: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> delta: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> sum: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * params.ld4;
    let cols = params.cols;
    let quads = (cols + 3u) / 4u;
    var squares = 0.0;
    for (var i = lane; i < quads; i += WG_SIZE) {
        var v = x[base + i];
        if ADD {
            v += delta[base + i];
            sum[base + i] = v;
        }
        v = mask_tail(v, i * 4u, cols);
        squares += dot(v, v);
    }
    let scale = inverseSqrt(workgroup_sum(squares, lane) / f32(cols) + params.eps);
    for (var i = lane; i < quads; i += WG_SIZE) {
        var v: vec4<f32>;
        if ADD { v = sum[base + i]; } else { v = x[base + i]; }
        y[base + i] = v * scale * gain[i];
    }
}
