// The gated delta rule in chunks, backward, once the differences between values and what the state held in their place and the gradients
// of the values are known: the gradients of the queries and keys as the rule takes them, by value head. `pairs` has the products of the
// result's and of the values' gradients with what was written. One workgroup per chunk, head and 32 features.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> pairs: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dqkv: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> differences: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> states: array<vec4<f32>>;
// By row and head the gradient of the query, then that of the key.
@group(0) @binding(7) var<storage, read_write> dqk: array<vec4<f32>>;

// 16 columns of the gradients of the results, of those of the values, and of what was written; or a chunk's square matrix.
var<workgroup> lefts: array<vec4<f32>, 3 * CHUNK * 4>;
// 16 columns of the state before the chunk, then of the gradient of that behind it; or queries or keys.
var<workgroup> rights: array<vec4<f32>, CHUNK * 8>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.key_dim + 31u) / 32u;
    let index = group.x + group.y * groups.x;
    let head = params.first_head + index / tiles % params.heads;
    let chunk = index / tiles / params.heads;
    if chunk >= params.chunks { return; }
    let first = chunk * CHUNK;
    let c = lane % 8u;
    let first_quad = index % tiles * 8u;
    let quads = params.key_dim / 4u;
    let columns = params.value_dim / 4u;
    // The first of this invocation's rows: those of the queries come before those of the keys.
    let own = lane / 8u * 4u;
    let of_keys = own >= CHUNK;
    load_factors(first, head, lane);
#for i in 0..4
    var a$i = vec4<f32>(0.0);
#end
    for (var begin = 0u; begin < columns; begin += 4u) {
        workgroupBarrier();
        for (var i = lane; i < 3u * CHUNK * 4u; i += 128u) {
            let kind = i / (CHUNK * 4u);
            let t = i / 4u % CHUNK;
            let column = begin + i % 4u;
            var value = vec4<f32>(0.0);
            if first + t < params.rows && column < columns {
                let at = ((first + t) * params.out_ld + head * params.value_dim) / 4u + column;
                if kind == 0u {
                    value = entries[t] * dout[at];
                } else if kind == 1u {
                    value = -entries[t] * dqkv[value_at(first + t, head) / 4u + column];
                } else {
                    value = exits[t] * row_factors[t].y * differences[at];
                }
            }
            lefts[i] = value;
        }
        for (var i = lane; i < 256u; i += 128u) {
            let column = 4u * begin + i / 8u % 16u;
            let quad = first_quad + i % 8u;
            let of_chunk = select(chunk, params.chunks + chunk, i >= 128u);
            var value = vec4<f32>(0.0);
            if column < params.value_dim && quad < quads { value = states[state_at(of_chunk, head, column) / 4u + quad]; }
            rights[i] = value;
        }
        workgroupBarrier();
        for (var quad = 0u; quad < 4u; quad++) {
#for j in 0..4
            let b$j = rights[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..4
            let l$i = lefts[(own + $iu) * 4u + quad];
            a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
        }
        if of_keys {
            for (var quad = 0u; quad < 4u; quad++) {
#for j in 0..4
                let b$j = rights[128u + (quad * 4u + $ju) * 8u + c];
#end
#for i in 0..4
                let l$i = lefts[(own + CHUNK + $iu) * 4u + quad];
                a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
            }
        }
    }
    // The rows of queries, and the products of the results' gradients, which both kinds of rows read.
    workgroupBarrier();
    for (var i = lane; i < 256u; i += 128u) {
        lefts[i] = pairs[pairs_at(first, head, 0u) + i];
        let row = first + i / 8u;
        let quad = first_quad + i % 8u;
        var value = vec4<f32>(0.0);
        if row < params.rows && quad < quads {
            value = row_factors[i / 8u].z * qkv[query_at(row, key_head(head)) / 4u + quad];
        }
        rights[i] = value;
    }
    workgroupBarrier();
    if of_keys {
        for (var t = 0u; t < CHUNK; t++) {
            let l = lefts[t * 8u + (own - CHUNK) / 4u];
            let q = rights[t * 8u + c];
#for i in 0..4
            a$i += l[$i] * q;
#end
        }
    }
    workgroupBarrier();
    for (var i = lane; i < 256u; i += 128u) {
        let row = first + i / 8u;
        let quad = first_quad + i % 8u;
        var value = vec4<f32>(0.0);
        if row < params.rows && quad < quads {
            value = row_factors[i / 8u].w * qkv[key_at(row, key_head(head)) / 4u + quad];
        }
        rights[i] = value;
    }
    workgroupBarrier();
    if !of_keys {
        for (var quad = 0u; quad < CHUNK / 4u; quad++) {
#for j in 0..4
            let b$j = rights[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..4
            let l$i = lefts[(own + $iu) * 8u + quad];
            a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
        }
    }
    workgroupBarrier();
    for (var i = lane; i < 256u; i += 128u) { lefts[i] = pairs[pairs_at(first, head, 1u) + i]; }
    workgroupBarrier();
    if of_keys {
        for (var quad = 0u; quad < CHUNK / 4u; quad++) {
#for j in 0..4
            let b$j = rights[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..4
            let l$i = lefts[(own - CHUNK + $iu) * 8u + quad];
            a$i -= l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
        }
        for (var t = 0u; t < CHUNK; t++) {
            let l = lefts[t * 8u + (own - CHUNK) / 4u];
            let k = rights[t * 8u + c];
#for i in 0..4
            a$i -= l[$i] * k;
#end
        }
    }
    if first_quad + c < quads {
        let row = first + select(own, own - CHUNK, of_keys);
        let behind = select(0u, quads, of_keys);
#for i in 0..4
        if row + $iu < params.rows { dqk[((row + $iu) * params.value_heads + head) * 2u * quads + behind + first_quad + c] = a$i; }
#end
    }
}
