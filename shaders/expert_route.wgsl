// The experts of each row: the scores of the router's logits, in place, and the TOP largest of them. With BIASED a bias of each expert
// is added for the choice alone. One invocation per row.

struct Params { rows: u32, experts: u32, ld: u32, top: u32, scale: f32 }

@group(0) @binding(0) var<storage, read_write> probabilities: array<f32>;
@group(0) @binding(1) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

// Above every score with its bias.
const LARGEST: f32 = 3.0e38;
#if SIGMOID
// Scores may all be near 0; those of a softmax add up to 1.
const SUM_OFFSET: f32 = 1e-6;
#else
const SUM_OFFSET: f32 = 0.0;
#end

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if row >= params.rows { return; }
    let base = row * params.ld;
#if SIGMOID
    for (var e = 0u; e < params.experts; e++) {
        // The bound keeps the exponential finite.
        probabilities[base + e] = 1.0 / (1.0 + exp(-max(probabilities[base + e], -87.0)));
    }
#else
    var highest = probabilities[base];
    for (var e = 1u; e < params.experts; e++) { highest = max(highest, probabilities[base + e]); }
    var total = 0.0;
    for (var e = 0u; e < params.experts; e++) { total += exp(probabilities[base + e] - highest); }
    for (var e = 0u; e < params.experts; e++) {
        probabilities[base + e] = exp(probabilities[base + e] - highest) / total;
    }
#end
    let first = row * params.top;
    // Among equals the one that comes first is taken first.
    var bound = LARGEST;
    var after = 0u;
    var sum = 0.0;
    for (var j = 0u; j < params.top; j++) {
        var best = -LARGEST;
        var at = 0u;
        for (var e = 0u; e < params.experts; e++) {
            var p = probabilities[base + e];
            if BIASED { p += bias[e]; }
            let left = p < bound || (p == bound && e > after);
            if left && p > best {
                best = p;
                at = e;
            }
        }
        chosen[first + j] = at;
        let weight = probabilities[base + at];
        weights[first + j] = weight;
        sum += weight;
        bound = best;
        after = at;
    }
    for (var j = 0u; j < params.top; j++) {
        var weight = weights[first + j];
        if NORMALIZED { weight = weight / (sum + SUM_OFFSET); }
        weights[first + j] = weight * params.scale;
    }
}
