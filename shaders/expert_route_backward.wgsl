// The gradients of the router's logits, in the place of the probabilities, from the share of each chosen expert: the gradient of its
// weight. One invocation per row.

struct Params { rows: u32, experts: u32, ld: u32, top: u32 }

@group(0) @binding(0) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> shares: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if row >= params.rows { return; }
    let base = row * params.ld;
    let first = row * params.top;
    var mean = 0.0;
    for (var j = 0u; j < params.top; j++) { mean += weights[first + j] * shares[first + j]; }
    for (var e = 0u; e < params.experts; e++) {
        // Divided by their sum, the weights do not depend on the other experts.
        if NORMALIZED { probabilities[base + e] = 0.0; } else { probabilities[base + e] *= -mean; }
    }
    for (var j = 0u; j < params.top; j++) {
        let w = weights[first + j];
        let c = shares[first + j];
        probabilities[base + chosen[first + j]] = w * (c - mean);
    }
}
