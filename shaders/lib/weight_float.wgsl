// A frozen weight of which the joined part reads elements of the flattened matrix: `load_float` one, `load_float4` four.

@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

// Elements col .. col+3 of a row, zero beyond the last column; col is a multiple of 4.
fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let index = row * in_features + col;
    if ALIGNED { return load_float4(index); }
    var values = vec4<f32>();
    let count = min(4u, in_features - col);
    for (var i = 0u; i < count; i++) { values[i] = load_float(index + i); }
    return values;
}
