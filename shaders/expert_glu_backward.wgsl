// The gated linear unit of experts, backward: `dact` is the gradient of act but for the expert's weight. Gate and up become their
// gradients, and `shares` gets the gradient of the weight, which is the sum of act * dact. One workgroup per slot.

struct Params { slots: u32, cols: u32, ld4: u32 }

@group(0) @binding(0) var<storage, read_write> gate: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dact: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> tile_experts: array<u32>;
@group(0) @binding(4) var<storage, read> pairs: array<u32>;
@group(0) @binding(5) var<storage, read> weights: array<f32>;
@group(0) @binding(6) var<storage, read_write> shares: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let slot = group.x + group.y * groups.x;
    if slot >= params.slots { return; }
    if tile_experts[slot / ROWS] == NONE { return; }
    let pair = pairs[slot];
    if pair == NONE { return; }
    let weight = weights[pair];
    let base = slot * params.ld4;
    let quads = (params.cols + 3u) / 4u;
    var share = 0.0;
    for (var i = lane; i < quads; i += WG_SIZE) {
        let raw_e = gate[base + i];
        let raw_g = up[base + i];
        let e = gate_input(raw_e);
        let g = up_input(raw_g);
        let d = dact[base + i];
        let w = activation_weight(e);
        share += dot(mask_tail(e * w * g, i * 4u, params.cols), mask_tail(d, i * 4u, params.cols));
        gate[base + i] = gate_gradient(times_slope(weight * d * g, e, w), raw_e);
        up[base + i] = up_gradient(weight * d * e * w, raw_g);
    }
    let total = workgroup_sum(share, lane);
    if lane == 0u { shares[pair] = total; }
}
