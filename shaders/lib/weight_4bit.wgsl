// A frozen weight in 4 bits: two codes a byte, the first in the high nibble, one absmax per 64 elements of the flattened matrix.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

// The value of the code in the lowest four bits: a tree of selects, since a table indexed at run time leaves the registers; one code at a time, since four
// trees side by side leave them too.
fn decode(code: u32) -> f32 {
    let b0 = (code & 1u) != 0u;
    let b1 = (code & 2u) != 0u;
    let b2 = (code & 4u) != 0u;
    let b3 = (code & 8u) != 0u;
    let c0 = select(CODE_0, CODE_1, b0);
    let c1 = select(CODE_2, CODE_3, b0);
    let c2 = select(CODE_4, CODE_5, b0);
    let c3 = select(CODE_6, CODE_7, b0);
    let c4 = select(CODE_8, CODE_9, b0);
    let c5 = select(CODE_10, CODE_11, b0);
    let c6 = select(CODE_12, CODE_13, b0);
    let c7 = select(CODE_14, CODE_15, b0);
    let low = select(select(c0, c1, b1), select(c2, c3, b1), b2);
    let high = select(select(c4, c5, b1), select(c6, c7, b1), b2);
    return select(low, high, b3);
}

// The code of an element in the lowest four bits, whatever lies above.
fn code_at(index: u32) -> u32 {
    let shift = ((index % 8u) / 2u) * 8u + (1u - index % 2u) * 4u;
    return weight[index / 8u] >> shift;
}

// Elements col .. col+3 of a row, zero beyond the last column; col is a multiple of 4.
fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let index = row * in_features + col;
    if ALIGNED {
        let half = weight[index / 8u] >> ((index % 8u) * 4u);
        let values = vec4(decode(half >> 4u), decode(half), decode(half >> 12u), decode(half >> 8u));
        return values * absmax_of(index / 64u);
    }
    var values = vec4<f32>();
    let count = min(4u, in_features - col);
    for (var i = 0u; i < count; i++) {
        values[i] = decode(code_at(index + i)) * absmax_of((index + i) / 64u);
    }
    return values;
}
