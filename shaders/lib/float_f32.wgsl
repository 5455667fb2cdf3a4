// Element access to `weight` that holds f32.

fn load_float(index: u32) -> f32 {
    return bitcast<f32>(weight[origin.weight + index]);
}

fn load_float4(index: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(weight[origin.weight + index], weight[origin.weight + index + 1u], weight[origin.weight + index + 2u], weight[origin.weight + index + 3u]));
}
