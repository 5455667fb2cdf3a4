// Eight consecutive codes of a 4-bit row as unscaled values. GPUs read a table in workgroup memory faster than they walk a tree of
// selects: its 16 entries lie in 16 banks, and equal codes share a read.

var<workgroup> code_table: array<f32, 16>;

struct Octet { h0: vec4<f32>, h1: vec4<f32> }

// A barrier must follow.
fn fill_code_table(lane: u32) {
    if lane < 16u { code_table[lane] = decode(lane); }
}

// The word with the elements col .. col+7 of a row, the first of each byte in its high half; col and in_features are multiples of 8.
fn octet_word(row: u32, col: u32, in_features: u32) -> u32 {
    return weight[origin.weight + (row * in_features + col) / 8u];
}

fn octet_of(word: u32) -> Octet {
    return Octet(
        vec4(
            code_table[(word >> 4u) & 15u], code_table[word & 15u],
            code_table[(word >> 12u) & 15u], code_table[(word >> 8u) & 15u],
        ),
        vec4(
            code_table[(word >> 20u) & 15u], code_table[(word >> 16u) & 15u],
            code_table[word >> 28u], code_table[(word >> 24u) & 15u],
        ),
    );
}
