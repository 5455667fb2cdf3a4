// 8-bit codes of a dynamic map, four a word; the kernel defines `map_value`: 256 signed values ascending, then 256 unsigned ones.

const SIGNED: u32 = 0u;
const UNSIGNED: u32 = 256u;

fn decoded(map: u32, word: u32, scale: f32) -> vec4<f32> {
    let at = map + ((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    return scale * vec4<f32>(map_value(at.x), map_value(at.y), map_value(at.z), map_value(at.w));
}

// The nearest value's code, of two that are equally near the lower one.
fn nearest(map: u32, value: f32, scale: f32) -> u32 {
    var low = 0u;
    var high = 255u;
    while low < high {
        let middle = (low + high) / 2u;
        let bound = 0.5 * (map_value(map + middle) + map_value(map + middle + 1u));
        // Not divided by the scale: a product has the same bits everywhere.
        if value > bound * scale { low = middle + 1u; } else { high = middle; }
    }
    return low;
}

fn encoded(map: u32, values: vec4<f32>, scale: f32) -> u32 {
    let codes = vec4<u32>(
        nearest(map, values.x, scale),
        nearest(map, values.y, scale),
        nearest(map, values.z, scale),
        nearest(map, values.w, scale),
    );
    // A second moment that became 0 would leave its first one to be divided by eps alone.
    let floors = select(vec4<u32>(0u), vec4<u32>(1u), (values > vec4<f32>(0.0)) & vec4<bool>(map == UNSIGNED));
    let kept = max(codes, floors);
    return kept.x | (kept.y << 8u) | (kept.z << 16u) | (kept.w << 24u);
}

fn largest_of(values: vec4<f32>) -> f32 {
    let sizes = abs(values);
    return max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}
