// The quad of a row that begins at `at`, with zeros from `end` on: padding holds no values.
fn mask_tail(value: vec4<f32>, at: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), value, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}
