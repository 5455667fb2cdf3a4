// Gate on an output, backward in place: gate becomes its gradient, and the gradient of the result becomes that of x.

struct Params { rows: u32, cols: u32, ld: u32 }

@group(0) @binding(0) var<storage, read_write> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dout: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let s = sigmoid(gate[at]);
    let dx = dout[at] * s;
    gate[at] = dx * x[at] * (1.0 - s);
    dout[at] = dx;
}
