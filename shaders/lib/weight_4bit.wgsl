// A frozen weight in 4 bits: two codes a byte, the first in the high nibble, one absmax per QUANT_BLOCK elements of the flattened matrix.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

// The code of an element in the lowest four bits, whatever lies above.
fn code_at(index: u32) -> u32 {
    let shift = ((index % 8u) / 2u) * 8u + (1u - index % 2u) * 4u;
    return weight[origin.weight + index / 8u] >> shift;
}

// Elements col .. col+3 of a row, zero beyond the last column; col is a multiple of 4.
fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let index = row * in_features + col;
    if ALIGNED {
        let half = weight[origin.weight + index / 8u] >> ((index % 8u) * 4u);
        let values = vec4(decode(half >> 4u), decode(half), decode(half >> 12u), decode(half >> 8u));
        return values * absmax_of(index / QUANT_BLOCK);
    }
    var values = vec4<f32>();
    let count = min(4u, in_features - col);
    for (var i = 0u; i < count; i++) {
        values[i] = decode(code_at(index + i)) * absmax_of((index + i) / QUANT_BLOCK);
    }
    return values;
}
