// A frozen weight in 4 bits: two codes a byte, the first in the high nibble, one absmax per 64 elements of the flattened matrix.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

// The values of four codes: a tree of selects, since a table indexed at run time leaves the registers.
fn decode(codes: vec4<u32>) -> vec4<f32> {
    let b0 = (codes & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (codes & vec4<u32>(2u)) != vec4<u32>();
    let b2 = (codes & vec4<u32>(4u)) != vec4<u32>();
    let b3 = (codes & vec4<u32>(8u)) != vec4<u32>();
    let c0 = select(vec4<f32>(CODE_0), vec4<f32>(CODE_1), b0);
    let c1 = select(vec4<f32>(CODE_2), vec4<f32>(CODE_3), b0);
    let c2 = select(vec4<f32>(CODE_4), vec4<f32>(CODE_5), b0);
    let c3 = select(vec4<f32>(CODE_6), vec4<f32>(CODE_7), b0);
    let c4 = select(vec4<f32>(CODE_8), vec4<f32>(CODE_9), b0);
    let c5 = select(vec4<f32>(CODE_10), vec4<f32>(CODE_11), b0);
    let c6 = select(vec4<f32>(CODE_12), vec4<f32>(CODE_13), b0);
    let c7 = select(vec4<f32>(CODE_14), vec4<f32>(CODE_15), b0);
    let low = select(select(c0, c1, b1), select(c2, c3, b1), b2);
    let high = select(select(c4, c5, b1), select(c6, c7, b1), b2);
    return select(low, high, b3);
}

fn code_at(index: u32) -> u32 {
    let shift = ((index % 8u) / 2u) * 8u + (1u - index % 2u) * 4u;
    return (weight[index / 8u] >> shift) & 15u;
}

// Elements col .. col+3 of a row, zero beyond the last column; col is a multiple of 4.
fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let index = row * in_features + col;
    if ALIGNED {
        let half = weight[index / 8u] >> ((index % 8u) * 4u);
        let codes = (vec4<u32>(half) >> vec4<u32>(4u, 0u, 12u, 8u)) & vec4<u32>(15u);
        return decode(codes) * absmax_of(index / 64u);
    }
    var codes = vec4<u32>();
    var scales = vec4<f32>();
    let count = min(4u, in_features - col);
    for (var i = 0u; i < count; i++) {
        codes[i] = code_at(index + i);
        scales[i] = absmax_of((index + i) / 64u);
    }
    return decode(codes) * scales;
}
