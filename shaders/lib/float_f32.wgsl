// Element access to `weight` that holds f32.

fn load_float(index: u32) -> f32 {
    return bitcast<f32>(weight[origin.weight + index]);
}

fn load_float4(index: u32) -> vec4<f32> {
    let at = origin.weight + index;
    return bitcast<vec4<f32>>(vec4<u32>(weight[at], weight[at + 1u], weight[at + 2u], weight[at + 3u]));
}
