fn float8(index: u32) -> Octet {
    return Octet(bitcast<vec4<f32>>(weight[index / 4u]), bitcast<vec4<f32>>(weight[index / 4u + 1u]));
}
