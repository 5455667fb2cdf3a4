// The largest magnitude over a workgroup, as the bits of an f32 without its sign. The bits order as integers, with infinity and NaN
// above every finite value, whatever a compiler assumes about them.

var<workgroup> reduce_scratch: array<u32, WG_SIZE>;

fn magnitude(value: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(value) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// Every invocation gets the result. Needs uniform control flow.
fn workgroup_max_bits(value: u32, lane: u32) -> u32 {
    reduce_scratch[lane] = value;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
        workgroupBarrier();
    }
    let highest = reduce_scratch[0];
    workgroupBarrier();
    return highest;
}
