// RMSNorm forward: one workgroup per row. With ADD, `scale * delta` is added to the row first, and the sum is kept; with POST,
// delta goes through a norm of its own before. Without NEXT, the sum is all that is computed.

struct Params { rows: u32, cols: u32, ld4: u32, eps: f32, gain_offset: f32, scale: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> delta: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> delta_gain: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> sum: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * params.ld4;
    let cols = params.cols;
    let quads = (cols + 3u) / 4u;
    var delta_norm = 0.0;
    if POST {
        var delta_squares = 0.0;
        for (var i = lane; i < quads; i += WG_SIZE) {
            let d = mask_tail(delta[base + i], i * 4u, cols);
            delta_squares += dot(d, d);
        }
        delta_norm = inverseSqrt(workgroup_sum(delta_squares, lane) / f32(cols) + params.eps);
    }
    var squares = 0.0;
    for (var i = lane; i < quads; i += WG_SIZE) {
        var v = x[base + i];
        if ADD {
            var d = delta[base + i];
            if POST { d *= delta_norm * (params.gain_offset + delta_gain[i]); }
            v += params.scale * d;
            sum[base + i] = v;
        }
        v = mask_tail(v, i * 4u, cols);
        squares += dot(v, v);
    }
    if NEXT {
        let scale = inverseSqrt(workgroup_sum(squares, lane) / f32(cols) + params.eps);
        for (var i = lane; i < quads; i += WG_SIZE) {
            var v: vec4<f32>;
            if ADD { v = sum[base + i]; } else { v = x[base + i]; }
            y[base + i] = v * scale * (params.gain_offset + gain[i]);
        }
    }
}
