// The gradients of the router's logits, in the place of the scores, from the share of each chosen expert: the gradient of its weight.
// The shares become the gradients of the chosen experts' logits. One invocation per row.

struct Params { rows: u32, experts: u32, ld: u32, top: u32, scale: f32 }

@group(0) @binding(0) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> shares: array<f32>;

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
    let shift = mean / params.scale;
    for (var j = 0u; j < params.top; j++) {
        var w = weights[first + j];
        let c = shares[first + j];
#if SIGMOID
        w *= 1.0 - probabilities[base + chosen[first + j]];
        if NORMALIZED { w *= c - shift; } else { w *= c; }
        shares[first + j] = w;
#else
        shares[first + j] = w * (c - shift);
#end
    }
    for (var e = 0u; e < params.experts; e++) {
        // A sigmoid does not depend on the other experts, nor do weights that are divided by their sum.
        if NORMALIZED || SIGMOID { probabilities[base + e] = 0.0; } else { probabilities[base + e] *= -mean; }
    }
    for (var j = 0u; j < params.top; j++) { probabilities[base + chosen[first + j]] = shares[first + j]; }
}
