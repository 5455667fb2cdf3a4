// sum = bias + scale * addend, with a bias of 0 unless BIASED. One invocation per output.

struct Params { outputs: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> bias: array<f32>;
@group(0) @binding(1) var<storage, read> addend: array<f32>;
@group(0) @binding(2) var<storage, read_write> sum: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let i = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if i >= params.outputs { return; }
    var value = params.scale * addend[i];
    if BIASED { value += bias[i]; }
    sum[i] = value;
}
