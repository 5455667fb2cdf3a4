// The backward's scratch: per row its key range and its query range, then [heads][rows] pairs (log2-sum-exp2, rowsum(dout * out)).
// One binding instead of four keeps the key kernel within eight.

fn key_range(row: u32) -> vec2<u32> { return scratch[2u * row]; }

fn query_range(row: u32) -> vec2<u32> { return scratch[2u * row + 1u]; }

fn row_terms(row: u32, head: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(scratch[(2u + head) * params.rows + row]);
}
