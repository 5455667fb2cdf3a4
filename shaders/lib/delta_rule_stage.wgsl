// Workgroup memory of the passes of the gated delta rule over its rows, where STAGED: a block of rows, and the sums of parts.

#if STAGED
var<workgroup> keys: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> queries: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> sums: array<f32, 2 * COLS * PARTS>;

// Loads the keys of a block of rows, and with QUERIES their queries.
fn stage(first: u32, head: u32, lane: u32) {
    for (var i = lane; i < BLOCK * PARTS * QUADS; i += COLS * PARTS) {
        let row = first + i / (PARTS * QUADS);
        let quad = i % (PARTS * QUADS);
        let within = row < params.rows && quad < params.key_dim / 4u;
        var key = vec4<f32>(0.0);
        if within { key = qkv[key_at(row, key_head(head)) / 4u + quad]; }
        keys[i] = key;
#if QUERIES
        var query = vec4<f32>(0.0);
        if within { query = qkv[query_at(row, key_head(head)) / 4u + quad]; }
        queries[i] = query;
#end
    }
    workgroupBarrier();
}

// The sum of a column's parts. Two halves in turn: a part that is ahead by a row leaves the sums of row t alone.
fn sum_of_parts(part: f32, t: u32, lane: u32) -> f32 {
    let half = t % 2u * COLS * PARTS;
    sums[half + lane] = part;
    workgroupBarrier();
    var sum = 0.0;
    for (var p = 0u; p < PARTS; p++) { sum += sums[half + p * COLS + lane % COLS]; }
    return sum;
}
#end
