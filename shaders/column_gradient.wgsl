// Partial sums over a range of rows, one for each column: of dy (the gradient of a bias), or with GAIN of dy * x * scale (the
// gradient of RMSNorm's gain). Each invocation owns four columns.

struct Params { rows: u32, cols: u32, ld4: u32, rows_per_split: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col4 = group.x * WG_SIZE + lane;
    let cols4 = (params.cols + 3u) / 4u;
    if col4 >= cols4 { return; }
    let begin = group.y * params.rows_per_split;
    let end = min(begin + params.rows_per_split, params.rows);
    var sum = vec4<f32>();
    for (var row = begin; row < end; row++) {
        let at = row * params.ld4 + col4;
        var value = dy[at];
        if GAIN { value *= x[at] * scales[row]; }
        sum += value;
    }
    partials[group.y * cols4 + col4] = sum;
}
