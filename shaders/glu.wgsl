// Gated linear unit: act = f(gate) * up of both inputs, where the activation is f(e) = e activation_weight(e).

struct Params { rows: u32, cols: u32, ld: u32 }

@group(0) @binding(0) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> act: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let e = gate_input(gate[at]);
    act[at] = e * activation_weight(e) * up_input(up[at]);
}
