// The parts that the kernels of the gated delta rule share. Offsets count single elements.

struct Params {
    rows: u32, key_heads: u32, value_heads: u32, key_dim: u32, value_dim: u32, ld: u32, out_ld: u32, gate_ld: u32, interval: u32,
    chunks: u32, carried: u32, anchors: u32, first_head: u32, heads: u32,
}

@group(1) @binding(0) var<uniform> params: Params;

// The key head of a value head.
fn key_head(head: u32) -> u32 {
    return head / (params.value_heads / params.key_heads);
}

fn query_at(row: u32, key_head: u32) -> u32 {
    return row * params.ld + key_head * params.key_dim;
}

fn key_at(row: u32, key_head: u32) -> u32 {
    return row * params.ld + (params.key_heads + key_head) * params.key_dim;
}

fn value_at(row: u32, head: u32) -> u32 {
    return row * params.ld + 2u * params.key_heads * params.key_dim + head * params.value_dim;
}

// The place of a row's decay, write strength and the factors of its query and its key.
fn factors_at(row: u32, head: u32) -> u32 {
    return row * params.value_heads + head;
}

// A column of a head's state lies in one piece, and the states of the heads from `first_head` on one behind the other.
fn state_at(chunk: u32, head: u32, column: u32) -> u32 {
    return ((chunk * params.heads + head - params.first_head) * params.value_dim + column) * params.key_dim;
}
