// A factor for each column. SCALED: y = (factor + shift) x. ADDED: y += (factor + shift) x. Neither: y = bias + factor (y - bias), with
// a bias of 0 unless BIASED.

struct Params { rows: u32, cols: u32, ld: u32, shift: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    var factor = vec4<f32>(0.0);
    var offset = vec4<f32>(0.0);
    #for i in 0..4
    if 4u * quad.y + $iu < params.cols {
        factor[$i] = factors[4u * quad.y + $iu] + params.shift;
        if BIASED { offset[$i] = bias[4u * quad.y + $iu]; }
    }
    #end
    if SCALED {
        y[at] = factor * x[at];
    } else if ADDED {
        y[at] += factor * x[at];
    } else {
        y[at] = offset + factor * (y[at] - offset);
    }
}
