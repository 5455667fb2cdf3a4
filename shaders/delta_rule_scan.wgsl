// The gated delta rule, chunk after chunk. The columns of a head's state do not depend on each other: a workgroup has 32 of them, and each
// invocation 4 columns of 4 rows in each of SLABS stretches of 64. REMAKE: the differences between values and what the state holds in their
// place are the result, and `states` takes the state before every chunk. Else the result is that of the layer, and `states` is the state
// that the pass goes on from, where it does.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> pairs: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

// Rows of keys, and of queries behind them, 16 features at a time; or a chunk's square matrix; or the keys' share in an update.
var<workgroup> lefts: array<vec4<f32>, 256>;
// 16 rows of the state.
var<workgroup> rights: array<vec4<f32>, 128>;
// The differences of a chunk; then what is written.
var<workgroup> written: array<vec4<f32>, CHUNK * 8>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.value_dim + 31u) / 32u;
    let index = group.x + group.y * groups.x;
    let head = params.first_head + index / tiles;
    if head >= params.first_head + params.heads { return; }
    let column_quad = index % tiles * 8u + lane % 8u;
    let within = column_quad < params.value_dim / 4u;
    let quads = params.key_dim / 4u;
    let c = lane % 8u;
    let r = lane / 8u;
    // The first of this invocation's rows of the products.
    let own = r * TILE;
    let with_keys = own < CHUNK;
#for slab in 0..SLABS
    var state$slab = mat4x4<f32>();
#end
#if REMAKE
#else
    // A sequence that begins here has no past, whatever the state holds.
    if params.carried != 0u && factors[factors_at(0u, head)].x != 0.0 && within {
#for slab in 0..SLABS
        state$slab = transpose(load_state(0u, head, column_quad, $slabu * 16u + r));
#end
    }
#end
    for (var first = 0u; first < params.rows; first += CHUNK) {
        load_factors(first, head, lane);
#if REMAKE
        if within {
#for slab in 0..SLABS
            store_state(first / CHUNK, head, column_quad, $slabu * 16u + r, transpose(state$slab));
#end
        }
#end
#for i in 0..TILE
        var a$i = vec4<f32>(0.0);
#end
#for slab in 0..SLABS
#for piece in 0..4
        if $slabu * 16u + $pieceu * 4u < quads {
            workgroupBarrier();
            for (var i = lane; i < 16u * TILE * 4u; i += 128u) {
                let t = i / 4u % CHUNK;
                let quad = $slabu * 16u + $pieceu * 4u + i % 4u;
                var value = vec4<f32>(0.0);
                if first + t < params.rows && quad < quads {
                    if i < CHUNK * 4u {
                        value = row_factors[t].w * qkv[key_at(first + t, key_head(head)) / 4u + quad];
                    } else {
                        value = row_factors[t].z * qkv[query_at(first + t, key_head(head)) / 4u + quad];
                    }
                }
                lefts[i] = value;
            }
            if r / 4u == $pieceu {
#for i in 0..4
                rights[(r % 4u * 4u + $iu) * 8u + c] = state$slab[$i];
#end
            }
            workgroupBarrier();
            for (var quad = 0u; quad < 4u; quad++) {
#for j in 0..4
                let b$j = rights[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..TILE
                let l$i = lefts[(own + $iu) * 4u + quad];
                a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
            }
        }
#end
#end
        workgroupBarrier();
        if with_keys {
#for i in 0..TILE
            {
                let row = first + own + $iu;
                var value = vec4<f32>(0.0);
                if row < params.rows && within {
                    value = qkv[value_at(row, head) / 4u + column_quad] - entries[own + $iu] * a$i;
                }
                written[(own + $iu) * 8u + c] = value;
            }
#end
        }
        for (var i = lane; i < 256u; i += 128u) { lefts[i] = pairs[pairs_at(first, head, 1u) + i]; }
        workgroupBarrier();
        if with_keys {
#for i in 0..TILE
            a$i = vec4<f32>(0.0);
#end
            for (var quad = 0u; quad < CHUNK / 4u; quad++) {
#for j in 0..4
                let b$j = written[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..TILE
                let l$i = lefts[(own + $iu) * 8u + quad];
                a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
            }
        }
        workgroupBarrier();
        if with_keys {
#for i in 0..TILE
#if REMAKE
            if first + own + $iu < params.rows && within {
                out[((first + own + $iu) * params.out_ld + head * params.value_dim) / 4u + column_quad] = a$i;
            }
#end
            written[(own + $iu) * 8u + c] = row_factors[own + $iu].y * a$i;
#end
        }
#if REMAKE
#else
        for (var i = lane; i < 256u; i += 128u) { lefts[i] = pairs[pairs_at(first, head, 0u) + i]; }
        workgroupBarrier();
        if !with_keys {
#for i in 0..TILE
            a$i *= entries[own - CHUNK + $iu];
#end
            for (var quad = 0u; quad < CHUNK / 4u; quad++) {
#for j in 0..4
                let b$j = written[(quad * 4u + $ju) * 8u + c];
#end
#for i in 0..TILE
                let l$i = lefts[(own - CHUNK + $iu) * 8u + quad];
                a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
            }
#for i in 0..TILE
            if first + own - CHUNK + $iu < params.rows && within {
                out[((first + own - CHUNK + $iu) * params.out_ld + head * params.value_dim) / 4u + column_quad] = a$i;
            }
#end
        }
#end
        let total = entries[CHUNK - 1u];
#for slab in 0..SLABS
        state$slab *= total;
        for (var begin = 0u; begin < CHUNK; begin += 16u) {
            workgroupBarrier();
            for (var i = lane; i < 256u; i += 128u) {
                let t = begin + i / 16u;
                let quad = $slabu * 16u + i % 16u;
                var value = vec4<f32>(0.0);
                if first + t < params.rows && quad < quads {
                    value = exits[t] * row_factors[t].w * qkv[key_at(first + t, key_head(head)) / 4u + quad];
                }
                lefts[i] = value;
            }
            workgroupBarrier();
            for (var t = 0u; t < 16u; t++) {
                let l = lefts[t * 16u + r];
                let u = written[(begin + t) * 8u + c];
#for i in 0..4
                state$slab[$i] += l[$i] * u;
#end
            }
        }
#end
    }
#if REMAKE
#else
    if params.carried != 0u && within {
#for slab in 0..SLABS
        store_state(0u, head, column_quad, $slabu * 16u + r, transpose(state$slab));
#end
    }
#end
}
