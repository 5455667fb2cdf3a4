// A table of bf16 values, the upper halves of f32, two per word, the first in the low half.

@group(0) @binding(1) var<storage, read> table: array<u32>;

fn load_float(index: u32) -> f32 {
    return bitcast<f32>((table[index / 2u] >> (16u * (index & 1u))) << 16u);
}
