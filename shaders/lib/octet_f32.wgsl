fn quad(values: Packed, at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(values);
}
