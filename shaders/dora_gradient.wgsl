// Partial sums over a range of rows of dy * u * inverse, one for each column: the gradient of DoRA's magnitudes. Each invocation owns
// four columns.

struct Params { rows: u32, cols: u32, ld4: u32, rows_per_split: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> u: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> inverses: array<f32>;
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
        sum += dy[at] * u[at];
    }
    var inverse = vec4<f32>();
    #for i in 0..4
    if 4u * col4 + $iu < params.cols { inverse[$i] = inverses[4u * col4 + $iu]; }
    #end
    partials[group.y * cols4 + col4] = sum * inverse;
}
