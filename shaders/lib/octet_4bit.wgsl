// A frozen weight in 4 bits with f32 scales, read one word (eight consecutive elements of a row) at a time.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

alias Packed = u32;

fn packed(index: u32) -> Packed {
    return weight[index / 8u];
}

fn scale(index: u32) -> f32 {
    return absmax[index / QUANT_BLOCK];
}

// The quad with the element `at` of the elements that `packed` has read, without their scale.
fn quad(word: Packed, at: u32) -> vec4<f32> {
    let half = word >> (at % 8u / 4u * 16u);
    return vec4(decode(half >> 4u), decode(half), decode(half >> 12u), decode(half >> 8u));
}
