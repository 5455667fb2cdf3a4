// Eight consecutive weights of a row in 4 bits, col a multiple of 8: one word, one absmax.

struct Octet { h0: vec4<f32>, h1: vec4<f32> }

fn weight8(row: u32, col: u32, in_features: u32) -> Octet {
    let index = row * in_features + col;
    let word = weight[index / 8u];
    let scale = absmax_of(index / 64u);
    return Octet(
        vec4(decode(word >> 4u), decode(word), decode(word >> 12u), decode(word >> 8u)) * scale,
        vec4(decode(word >> 20u), decode(word >> 16u), decode(word >> 28u), decode(word >> 24u)) * scale,
    );
}
