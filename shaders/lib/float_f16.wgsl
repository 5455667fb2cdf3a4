// Element access to `weight` that holds f16, two per word.

fn load_float(index: u32) -> f32 {
    return unpack2x16float(weight[origin.weight + index / 2u])[index % 2u];
}

fn load_float4(index: u32) -> vec4<f32> {
    let at = origin.weight + index / 2u;
    return vec4<f32>(unpack2x16float(weight[at]), unpack2x16float(weight[at + 1u]));
}
