// A quad of a row, at `at`, without what lies at `end` or beyond it: padding is not to be read as values.
fn mask_tail(value: vec4<f32>, at: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), value, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}
