// Some columns of a matrix, by their indices. TAKE: small = large's columns, which become 0. Else large's columns = small.

struct Params { rows: u32, cols: u32, small_ld: u32, large_ld: u32, bound: u32 }

@group(0) @binding(0) var<storage, read> indices: array<u32>;
@group(0) @binding(1) var<storage, read_write> small: array<f32>;
@group(0) @binding(2) var<storage, read_write> large: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let row = index / params.cols;
    let col = index % params.cols;
    if row >= params.rows { return; }
    let to = indices[col];
    if to >= params.bound { return; }
    let at = row * params.large_ld + to;
    if TAKE {
        small[row * params.small_ld + col] = large[at];
        large[at] = 0.0;
    } else {
        large[at] = small[row * params.small_ld + col];
    }
}
