// The gated delta rule, from the last chunk to the first: the gradients of the values, with the columns of the gradient of a head's state
// shared out as in delta_rule_scan.wgsl. `states` has the state before every chunk, and takes the gradient of the state behind it
// besides; `anchors` the product of both at the same place, in as many parts as there are workgroups of a head.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> pairs: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> anchors: array<f32>;

// Rows of keys, 16 features at a time; or a chunk's square matrix; or queries or keys in an update.
var<workgroup> lefts: array<vec4<f32>, 256>;
// 16 rows of the gradient of the state.
var<workgroup> rights: array<vec4<f32>, 128>;
// The gradients of a chunk's results.
var<workgroup> douts: array<vec4<f32>, CHUNK * 8>;
// The gradients of what is written times the write strength; then those of the values.
var<workgroup> dvalues: array<vec4<f32>, CHUNK * 8>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.value_dim + 31u) / 32u;
    let index = group.x + group.y * groups.x;
    let tile = index % tiles;
    let head = params.first_head + index / tiles;
    if head >= params.first_head + params.heads { return; }
    let column_quad = tile * 8u + lane % 8u;
    let within = column_quad < params.value_dim / 4u;
    let quads = params.key_dim / 4u;
    let c = lane % 8u;
    let r = lane / 8u;
    // The first of this invocation's two rows of the products.
    let own = r * 2u;
    let upper = r % 2u == 1u;
#for slab in 0..SLABS
    var state$slab = mat4x4<f32>();
#end
    for (var chunks = params.chunks; chunks > 0u; chunks--) {
        let chunk = chunks - 1u;
        let first = chunk * CHUNK;
        var anchor = 0.0;
        if within {
#for slab in 0..SLABS
            {
                let gradient = transpose(state$slab);
                store_state(params.chunks + chunk, head, column_quad, $slabu * 16u + r, gradient);
                if chunks < params.chunks {
                    let behind = load_state(chunks, head, column_quad, $slabu * 16u + r);
#for j in 0..4
                    anchor += dot(gradient[$j], behind[$j]);
#end
                }
            }
#end
        }
        anchor = workgroup_sum(anchor, lane);
        if lane == 0u { anchors[(chunk * params.value_heads + head) * params.anchors + tile] = anchor; }
        load_factors(first, head, lane);
#for i in 0..2
        var a$i = vec4<f32>(0.0);
#end
#for slab in 0..SLABS
#for piece in 0..4
        if $slabu * 16u + $pieceu * 4u < quads {
            workgroupBarrier();
            let t = lane / 4u;
            let quad = $slabu * 16u + $pieceu * 4u + lane % 4u;
            var value = vec4<f32>(0.0);
            if first + t < params.rows && quad < quads {
                value = exits[t] * row_factors[t].w * qkv[key_at(first + t, key_head(head)) / 4u + quad];
            }
            lefts[lane] = value;
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
#for i in 0..2
                let l$i = lefts[(own + $iu) * 4u + quad];
                a$i += l$i.x * b0 + l$i.y * b1 + l$i.z * b2 + l$i.w * b3;
#end
            }
        }
#end
#end
        workgroupBarrier();
        for (var i = lane; i < 256u; i += WG_SIZE) {
            lefts[i] = pairs[pairs_at(first, head, 0u) + i];
            let row = first + i / 8u;
            var value = vec4<f32>(0.0);
            if row < params.rows && within { value = dout[(row * params.out_ld + head * params.value_dim) / 4u + column_quad]; }
            douts[i] = value;
        }
        workgroupBarrier();
        for (var t = 0u; t < CHUNK; t++) {
            let l = lefts[t * 8u + r / 2u];
            let d = douts[t * 8u + c];
            a0 += select(l.x, l.z, upper) * d;
            a1 += select(l.y, l.w, upper) * d;
        }
        workgroupBarrier();
        for (var i = lane; i < 256u; i += WG_SIZE) { lefts[i] = pairs[pairs_at(first, head, 1u) + i]; }
#for i in 0..2
        dvalues[(own + $iu) * 8u + c] = row_factors[own + $iu].y * a$i;
        a$i = vec4<f32>(0.0);
#end
        workgroupBarrier();
        for (var t = 0u; t < CHUNK; t++) {
            let l = lefts[t * 8u + r / 2u];
            let d = dvalues[t * 8u + c];
            a0 += select(l.x, l.z, upper) * d;
            a1 += select(l.y, l.w, upper) * d;
        }
        workgroupBarrier();
#for i in 0..2
        dvalues[(own + $iu) * 8u + c] = a$i;
        if first + own + $iu < params.rows && within {
            dqkv[value_at(first + own + $iu, head) / 4u + column_quad] = a$i;
        }
#end
        let total = entries[CHUNK - 1u];
#for slab in 0..SLABS
        state$slab *= total;
        for (var begin = 0u; begin < CHUNK; begin += 8u) {
            workgroupBarrier();
            for (var i = lane; i < 256u; i += WG_SIZE) {
                let t = begin + i / 16u % 8u;
                let quad = $slabu * 16u + i % 16u;
                var value = vec4<f32>(0.0);
                if first + t < params.rows && quad < quads {
                    if i < 128u {
                        value = entries[t] * row_factors[t].z * qkv[query_at(first + t, key_head(head)) / 4u + quad];
                    } else {
                        value = -entries[t] * row_factors[t].w * qkv[key_at(first + t, key_head(head)) / 4u + quad];
                    }
                }
                lefts[i] = value;
            }
            workgroupBarrier();
            for (var t = 0u; t < 8u; t++) {
                let q = lefts[t * 16u + r];
                let k = lefts[128u + t * 16u + r];
                let d = douts[(begin + t) * 8u + c];
                let v = dvalues[(begin + t) * 8u + c];
#for i in 0..4
                state$slab[$i] += q[$i] * d + k[$i] * v;
#end
            }
        }
#end
    }
}
