// Gated linear unit, backward in place: gate and up become their gradients, and the gradient of act becomes act.

struct Params { rows: u32, cols: u32, ld: u32 }

@group(0) @binding(0) var<storage, read_write> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dact: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let raw_e = gate[at];
    let raw_g = up[at];
    let e = gate_input(raw_e);
    let g = up_input(raw_g);
    let d = dact[at];
    let w = activation_weight(e);
    gate[at] = gate_gradient(times_slope(d * g, e, w), raw_e);
    up[at] = up_gradient(d * e * w, raw_g);
    dact[at] = e * w * g;
}
