// RMSNorm input gradient of `scale * dy`: one workgroup per row; with ACCUMULATE it is added to dx.

struct Params { rows: u32, cols: u32, ld4: u32, eps: f32, gain_offset: f32, scale: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

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
    var products = 0.0;
    for (var i = lane; i < quads; i += WG_SIZE) {
        let v = mask_tail(x[base + i], i * 4u, cols);
        squares += dot(v, v);
        products += dot(v, mask_tail(dy[base + i] * (params.gain_offset + gain[i]), i * 4u, cols));
    }
    let mean_square = workgroup_sum(squares, lane) / f32(cols) + params.eps;
    let product = workgroup_sum(products, lane);
    let scale = inverseSqrt(mean_square);
    let pull = product / (f32(cols) * mean_square);
    for (var i = lane; i < quads; i += WG_SIZE) {
        var d = params.scale * (scale * (dy[base + i] * (params.gain_offset + gain[i]) - x[base + i] * pull));
        if ACCUMULATE { d += dx[base + i]; }
        dx[base + i] = d;
    }
}
