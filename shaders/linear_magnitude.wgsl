// The largest magnitudes of a weight and of a LoRA factor, one partial maximum of each per workgroup, as the bits of an f32 without
// its sign. The weight's begin at maxima[0], the factor's at maxima[PARTIALS].

struct Params { elements: u32, factors: u32 }

@group(0) @binding(0) var<storage, read> factor: array<f32>;
@group(0) @binding(4) var<storage, read_write> maxima: array<u32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * WG_SIZE + lane;
    let step = groups.x * WG_SIZE;
    var of_weight = 0u;
#if BLOCKS
    // No element of a block exceeds its scale, since no code exceeds 1.
    for (var block = first; block < (params.elements + QUANT_BLOCK - 1u) / QUANT_BLOCK; block += step) {
        of_weight = max(of_weight, magnitude(vec4<f32>(absmax_of(block))));
    }
#else
    for (var quad = first; quad < params.elements / 4u; quad += step) {
        of_weight = max(of_weight, magnitude(load_float4(quad * 4u)));
    }
    for (var i = params.elements / 4u * 4u; i < params.elements; i++) {
        of_weight = max(of_weight, magnitude(vec4<f32>(load_float(i))));
    }
#end
    var of_factor = 0u;
    for (var i = first; i < params.factors; i += step) {
        of_factor = max(of_factor, magnitude(vec4<f32>(factor[i])));
    }
    of_weight = workgroup_max_bits(of_weight, lane);
    of_factor = workgroup_max_bits(of_factor, lane);
    if lane == 0u {
        maxima[group.x] = of_weight;
        maxima[PARTIALS + group.x] = of_factor;
    }
}
