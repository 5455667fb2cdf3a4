// Element access to `weight` that holds bf16, two per word: the upper half of an f32.

fn load_float(index: u32) -> f32 {
    return bitcast<f32>((weight[origin.weight + index / 2u] >> ((index % 2u) * 16u)) << 16u);
}

fn load_float4(index: u32) -> vec4<f32> {
    let at = origin.weight + index / 2u;
    let low = weight[at];
    let high = weight[at + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}
