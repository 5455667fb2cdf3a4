// The experts of each row: the softmax of the router's logits, in place, and the TOP largest of it. One invocation per row.

struct Params { rows: u32, experts: u32, ld: u32, top: u32 }

@group(0) @binding(0) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if row >= params.rows { return; }
    let base = row * params.ld;
    var highest = probabilities[base];
    for (var e = 1u; e < params.experts; e++) { highest = max(highest, probabilities[base + e]); }
    var total = 0.0;
    for (var e = 0u; e < params.experts; e++) { total += exp(probabilities[base + e] - highest); }
    for (var e = 0u; e < params.experts; e++) {
        probabilities[base + e] = exp(probabilities[base + e] - highest) / total;
    }
    let first = row * params.top;
    // Among equals the one that comes first is taken first.
    var bound = 2.0;
    var after = 0u;
    var sum = 0.0;
    for (var j = 0u; j < params.top; j++) {
        var best = -1.0;
        var at = 0u;
        for (var e = 0u; e < params.experts; e++) {
            let p = probabilities[base + e];
            let left = p < bound || (p == bound && e > after);
            if left && p > best {
                best = p;
                at = e;
            }
        }
        chosen[first + j] = at;
        weights[first + j] = best;
        sum += best;
        bound = best;
        after = at;
    }
    if NORMALIZED {
        for (var j = 0u; j < params.top; j++) { weights[first + j] = weights[first + j] / sum; }
    }
}
