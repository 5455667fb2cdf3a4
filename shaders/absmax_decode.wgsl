// Decodes the block scales of double quantization to f32. A kernel that needs a scale for every few weights then loads one value.

struct Params { count: u32 }

@group(0) @binding(0) var<storage, read_write> scales: array<f32>;
@group(0) @binding(1) var<storage, read> absmax: array<u32>;
@group(0) @binding(2) var<storage, read> nested: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let block = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if block < params.count { scales[block] = absmax_of(block); }
}
