// The halves of every head of `joint`, which `first` and `second` hold head by head. MERGE: joint = both halves. Else the halves of joint
// are copied out.

struct Params { rows: u32, cols: u32, ld4: u32, half4: u32, first_ld4: u32, second_ld4: u32 }

@group(0) @binding(0) var<storage, read_write> joint: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> first: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> second: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let half = quad.y / params.half4;
    let column = half / 2u * params.half4 + (quad.y - half * params.half4);
    let at = quad.x * params.ld4 + quad.y;
    if half % 2u == 0u {
        let to = quad.x * params.first_ld4 + column;
        if MERGE { joint[at] = first[to]; } else { first[to] = joint[at]; }
    } else {
        let to = quad.x * params.second_ld4 + column;
        if MERGE { joint[at] = second[to]; } else { second[to] = joint[at]; }
    }
}
