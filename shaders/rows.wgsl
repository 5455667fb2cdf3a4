// Rows by index: y[i] = x[index[i]], or with SCATTER y[index[i]] = x[i].

struct Params { rows: u32, cols: u32, ld: u32, bound: u32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> indices: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let stride = params.ld / 4u;
    let here = quad.x * stride + quad.y;
    let index = indices[quad.x];
    let there = index * stride + quad.y;
    if SCATTER {
        if index < params.bound { y[there] = x[here]; }
    } else if index < params.bound {
        y[here] = x[there];
    } else {
        y[here] = vec4<f32>(0.0);
    }
}
