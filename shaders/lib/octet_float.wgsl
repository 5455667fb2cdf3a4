// Eight consecutive weights of a row in a float storage, col a multiple of 8.

struct Octet { h0: vec4<f32>, h1: vec4<f32> }

fn weight8(row: u32, col: u32, in_features: u32) -> Octet {
    let index = row * in_features + col;
    return Octet(load_float4(index), load_float4(index + 4u));
}
