// 8-bit codes of a dynamic map, four in a word. The kernel defines `table`: 256 signed values in ascending order, 256 unsigned ones,
// then the end of each value's interval.

const SIGNED: u32 = 0u;
const UNSIGNED: u32 = 256u;
const BOUNDS: u32 = 512u;
const LOG2_OF_10: f32 = 3.3219281;

fn decoded(map: u32, word: u32, scale: f32) -> vec4<f32> {
    let at = map + ((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
    return scale * vec4<f32>(table(at.x), table(at.y), table(at.z), table(at.w));
}

// The codes of magnitudes up to 1 by the map's formula: a decade, and its linear steps.
fn estimated(map: u32, magnitudes: vec4<f32>) -> vec4<u32> {
    let decade = clamp(floor(log2(max(magnitudes, vec4<f32>(1e-9))) / LOG2_OF_10) + 7.0, vec4<f32>(0.0), vec4<f32>(6.0));
    let steps = exp2(decade + select(0.0, 1.0, map == UNSIGNED));
    let tenth_to_one = magnitudes * exp2((6.0 - decade) * LOG2_OF_10);
    let step = clamp(floor((tenth_to_one - 0.1) / 0.9 * steps), vec4<f32>(0.0), steps - 1.0);
    return select(128u, 0u, map == UNSIGNED) + vec4<u32>(steps + step) - 1u;
}

// The code of the nearest value, of two equally near ones the lower. The search begins at `estimate` and usually takes no step or one.
fn nearest(map: u32, value: f32, scale: f32, estimate: u32) -> u32 {
    var code = min(estimate, 255u);
    // Not divided by the scale: a product has the same bits everywhere.
    while code < 255u && value > table(BOUNDS + map + code) * scale { code++; }
    while code > 0u && value <= table(BOUNDS + map + code - 1u) * scale { code--; }
    return code;
}

fn encoded(map: u32, values: vec4<f32>, scale: f32) -> u32 {
    // A subnormal scale may have no reciprocal.
    let inverse = select(0.0, 1.0 / scale, scale > 1e-37);
    let magnitude = estimated(map, min(abs(values) * inverse, vec4<f32>(1.0)));
    let estimate = select(magnitude, 254u - magnitude, values < vec4<f32>(0.0));
    let codes = vec4<u32>(
        nearest(map, values.x, scale, estimate.x),
        nearest(map, values.y, scale, estimate.y),
        nearest(map, values.z, scale, estimate.z),
        nearest(map, values.w, scale, estimate.w),
    );
    // With a second moment of 0 the first moment would be divided by eps alone.
    let floors = select(vec4<u32>(0u), vec4<u32>(1u), (values > vec4<f32>(0.0)) & vec4<bool>(map == UNSIGNED));
    let kept = max(codes, floors);
    return kept.x | (kept.y << 8u) | (kept.z << 16u) | (kept.w << 24u);
}

fn largest_of(values: vec4<f32>) -> f32 {
    let sizes = abs(values);
    return max(max(sizes.x, sizes.y), max(sizes.z, sizes.w));
}
