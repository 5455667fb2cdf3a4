// The gated delta rule in chunks: products of each row of a chunk with every earlier one, times the decay between them. KEYS: first those of
// queries with keys, then with T those of keys with keys times the write strength of the earlier one, the inverse of I + T. Else first
// those of the result's gradients with what was written, then those of the values' gradients with it, without a row's own.
// One workgroup per chunk and head.

// q, k and v, or the gradients of the results.
@group(0) @binding(0) var<storage, read> upper: array<vec4<f32>>;
// q, k and v, or their gradients.
@group(0) @binding(1) var<storage, read> lower: array<vec4<f32>>;
// q, k and v, or the differences between values and what the state held in their place.
@group(0) @binding(2) var<storage, read> others: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> pairs: array<f32>;

// 4 quads of each row: first rows of both products, then the rows that they are multiplied with.
var<workgroup> lefts: array<vec4<f32>, 2 * CHUNK * 4>;
var<workgroup> rights: array<vec4<f32>, CHUNK * 4>;
// The decay from one row to another; then the inverse.
var<workgroup> decays: array<f32, CHUNK * CHUNK>;
#if KEYS
var<workgroup> held: array<f32, CHUNK * CHUNK>;
#end

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * groups.x;
    let head = params.first_head + index % params.heads;
    let first = index / params.heads * CHUNK;
    if first >= params.rows { return; }
    load_factors(first, head, lane);
    if lane < CHUNK {
        var decay = 1.0;
        for (var t = 0u; t < CHUNK; t++) {
            if t > lane { decay *= row_factors[t].x; }
            decays[t * CHUNK + lane] = select(0.0, decay, t >= lane);
        }
    }
#if KEYS
    let quads = params.key_dim / 4u;
#else
    let quads = params.value_dim / 4u;
#end
    let tile_row = lane / 8u * 4u;
    let tile_column = lane % 8u * 4u;
#for r in 0..4
    var a$r = vec4<f32>(0.0);
#end
    for (var begin = 0u; begin < quads; begin += 4u) {
        workgroupBarrier();
        for (var i = lane; i < 3u * CHUNK * 4u; i += 128u) {
            let t = i / 4u % CHUNK;
            let kind = i / (4u * CHUNK);
            let row = first + t;
            let quad = begin + i % 4u;
            var value = vec4<f32>(0.0);
            if row < params.rows && quad < quads {
                let f = row_factors[t];
#if KEYS
                let of_key = key_at(row, key_head(head)) / 4u + quad;
                if kind == 0u {
                    value = f.z * upper[query_at(row, key_head(head)) / 4u + quad];
                } else if kind == 1u {
                    value = f.w * lower[of_key];
                } else {
                    value = f.w * others[of_key];
                }
#else
                let at = (row * params.out_ld + head * params.value_dim) / 4u + quad;
                if kind == 0u {
                    value = upper[at];
                } else if kind == 1u {
                    value = lower[value_at(row, head) / 4u + quad];
                } else {
                    value = f.y * others[at];
                }
#end
            }
            if kind == 2u { rights[i - 2u * CHUNK * 4u] = value; } else { lefts[i] = value; }
        }
        workgroupBarrier();
        for (var quad = 0u; quad < 4u; quad++) {
#for j in 0..4
            let b$j = rights[(tile_column + $ju) * 4u + quad];
#end
#for r in 0..4
            let l$r = lefts[(tile_row + $ru) * 4u + quad];
            a$r += vec4<f32>(dot(l$r, b0), dot(l$r, b1), dot(l$r, b2), dot(l$r, b3));
#end
        }
    }
    let of_queries = pairs_at(first, head, 0u) * 4u;
    let of_keys = pairs_at(first, head, 1u) * 4u;
    let own_rows = vec4<u32>(tile_column) + vec4<u32>(0u, 1u, 2u, 3u);
#for r in 0..4
    if tile_row < CHUNK {
        let t = tile_row + $ru;
        for (var j = 0u; j < 4u; j++) {
            let at = t * CHUNK + tile_column + j;
            pairs[of_queries + at] = a$r[j] * decays[at];
        }
    } else {
        let t = tile_row - CHUNK + $ru;
        for (var j = 0u; j < 4u; j++) {
            let s = own_rows[j];
            let at = t * CHUNK + s;
            let product = select(0.0, a$r[j] * decays[at], s < t);
#if KEYS
            held[at] = product * row_factors[s].y;
#else
            pairs[of_keys + at] = product;
#end
        }
    }
#end
#if KEYS
    workgroupBarrier();
    // A column of the inverse by each of the first lanes, from top to bottom.
    if lane < CHUNK {
        for (var t = 0u; t < CHUNK; t++) {
            var value = select(0.0, 1.0, t == lane);
            for (var s = lane; s < t; s++) { value -= held[t * CHUNK + s] * decays[s * CHUNK + lane]; }
            decays[t * CHUNK + lane] = value;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < CHUNK * CHUNK; i += 128u) { pairs[of_keys + i] = decays[i]; }
#end
}
