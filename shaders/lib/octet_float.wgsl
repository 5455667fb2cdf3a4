// A frozen weight in f32, f16 or bf16, read eight elements of a row at a time, index a multiple of 8: the fewer and wider the loads the
// better. `float8` of the joined part unpacks them.

@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

struct Octet { h0: vec4<f32>, h1: vec4<f32> }

fn weight8(row: u32, col: u32, in_features: u32) -> Octet {
    return float8(row * in_features + col);
}

fn weight4(row: u32, col: u32, in_features: u32) -> vec4<f32> {
    let octet = float8(row * in_features + col / 8u * 8u);
    return select(octet.h0, octet.h1, col % 8u >= 4u);
}
