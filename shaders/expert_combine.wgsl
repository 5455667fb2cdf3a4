// The sum over the experts of each row, in the order in which the row chose them; with WEIGHTED each times its weight.

struct Params { rows: u32, cols: u32, x_ld4: u32, y_ld4: u32, y_col4: u32, top: u32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> slots: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    var sum = vec4<f32>();
    for (var j = 0u; j < params.top; j++) {
        let pair = quad.x * params.top + j;
        var value = x[slots[pair] * params.x_ld4 + quad.y];
        if WEIGHTED { value *= weights[pair]; }
        sum += value;
    }
    y[quad.x * params.y_ld4 + params.y_col4 + quad.y] = sum;
}
