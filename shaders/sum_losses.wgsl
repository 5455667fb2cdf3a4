// total += the sum of the losses, by one workgroup.

struct Params { count: u32 }

@group(0) @binding(0) var<storage, read> losses: array<f32>;
@group(0) @binding(1) var<storage, read_write> total: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < params.count; i += WG_SIZE) { sum += losses[i]; }
    let all = workgroup_sum(sum, lane);
    if lane == 0u { total[0] += all; }
}
