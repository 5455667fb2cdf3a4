// Chunks of the gated delta rule (Yang, Kautz and Hatamizadeh 2024, section 3.3): within CHUNK rows everything but the state before them is
// products of matrices. A workgroup of 128 invocations has tiles of 4 columns each, 8 beside each other. Rows behind the last one
// count as zeros that neither decay nor write.

// The factors of a chunk's rows; for each row the decay from the state before the chunk, and from it to the end.
var<workgroup> row_factors: array<vec4<f32>, CHUNK>;
var<workgroup> entries: array<f32, CHUNK>;
var<workgroup> exits: array<f32, CHUNK>;

fn load_factors(first: u32, head: u32, lane: u32) {
    workgroupBarrier();
    if lane < CHUNK {
        var f = vec4<f32>(1.0, 0.0, 0.0, 0.0);
        if first + lane < params.rows { f = factors[factors_at(first + lane, head)]; }
        row_factors[lane] = f;
    }
    workgroupBarrier();
    if lane < CHUNK {
        var entry = 1.0;
        for (var t = 0u; t <= lane; t++) { entry *= row_factors[t].x; }
        entries[lane] = entry;
        var exit = 1.0;
        for (var t = lane + 1u; t < CHUNK; t++) { exit *= row_factors[t].x; }
        exits[lane] = exit;
    }
    workgroupBarrier();
}

// Quads of a chunk's square matrix. `which` is 0 for the products with queries, 1 for those of keys.
fn pairs_at(first: u32, head: u32, which: u32) -> u32 {
    return ((first / CHUNK * params.value_heads + head) * 2u + which) * CHUNK * CHUNK / 4u;
}
