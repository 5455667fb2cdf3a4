// A table of f16 values, two per word, the first in the low half.

@group(0) @binding(1) var<storage, read> table: array<u32>;

fn load_float(index: u32) -> f32 {
    let pair = unpack2x16float(table[index / 2u]);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}
