// A frozen weight in 4 bits with f32 scales, read eight consecutive elements of a row at a time: one word.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<f32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

struct Octet { h0: vec4<f32>, h1: vec4<f32> }

fn decode8(word: u32, scale: f32) -> Octet {
    return Octet(
        vec4(decode(word >> 4u), decode(word), decode(word >> 12u), decode(word >> 8u)) * scale,
        vec4(decode(word >> 20u), decode(word >> 16u), decode(word >> 28u), decode(word >> 24u)) * scale,
    );
}

// col is a multiple of 8.
fn weight8(row: u32, col: u32, in_features: u32) -> Octet {
    let index = row * in_features + col;
    return decode8(weight[index / 8u], absmax[index / 64u]);
}

// col is a multiple of 4.
fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let index = row * in_features + col;
    let half = weight[index / 8u] >> ((index % 8u) * 4u);
    return vec4(decode(half >> 4u), decode(half), decode(half >> 12u), decode(half >> 8u)) * absmax[index / 64u];
}
