// A table of f32 values.

@group(0) @binding(1) var<storage, read> table: array<u32>;

fn load_float(index: u32) -> f32 {
    return bitcast<f32>(table[index]);
}
