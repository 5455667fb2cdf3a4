// Attention's key and value gradients: a workgroup owns 32 keys of one key head and walks the queries of the group's heads in
// tiles of 32, so that nothing is summed across workgroups.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dv: array<vec4<f32>>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let tiles = (params.keys + TILE - 1u) / TILE;
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * TILE;
    let last = min(first + TILE, params.keys) - 1u;
    var queries = vec2(0xffffffffu, 0u);
    for (var key = first; key <= last; key++) {
        queries = joined(queries, query_range(key));
    }

    let tr = lane / 8u;
    let tc = lane % 8u;
#for i in 0..ROWS
    let key$i = min(first + tr + $iu * TR, last);
    let range$i = query_range(key$i);
#for c in 0..CHUNKS
    var dk$i_$c = vec4(0.0);
    var dv$i_$c = vec4(0.0);
#end
#end
    for (var head = kv_head * heads_per_key; head < (kv_head + 1u) * heads_per_key; head++) {
        for (var base = queries.x; base < queries.y; base += TILE) {
#for i in 0..ROWS
            var s$i = vec4(0.0);
            var dp$i = vec4(0.0);
#end
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                workgroupBarrier();
                for (var e = lane; e < 256u; e += WG_SIZE) {
                    let r = e / 8u;
                    let c = chunk * 8u + e % 8u;
                    var a = vec4(0.0);
                    if first + r <= last && c < D4 { a = k[(first + r) * params.k_ld + kv_head * D4 + c]; }
                    own[r * STRIDE + e % 8u] = a;
                    var b = vec4(0.0);
                    if base + r < queries.y && c < D4 { b = q[(base + r) * params.q_ld + head * D4 + c]; }
                    other[r * STRIDE + e % 8u] = b;
                }
                workgroupBarrier();
                for (var d = 0u; d < 8u; d++) {
                    let b0 = other[tc * STRIDE + d];
                    let b1 = other[(tc + 8u) * STRIDE + d];
                    let b2 = other[(tc + 16u) * STRIDE + d];
                    let b3 = other[(tc + 24u) * STRIDE + d];
#for i in 0..ROWS
                    s$i += dots(own[(tr + $iu * TR) * STRIDE + d], b0, b1, b2, b3);
#end
                }
                workgroupBarrier();
                for (var e = lane; e < 256u; e += WG_SIZE) {
                    let r = e / 8u;
                    let c = chunk * 8u + e % 8u;
                    var a = vec4(0.0);
                    if first + r <= last && c < D4 { a = v[(first + r) * params.v_ld + kv_head * D4 + c]; }
                    own[r * STRIDE + e % 8u] = a;
                    var b = vec4(0.0);
                    if base + r < queries.y && c < D4 { b = dout[(base + r) * params.dout_ld + head * D4 + c]; }
                    other[r * STRIDE + e % 8u] = b;
                }
                workgroupBarrier();
                for (var d = 0u; d < 8u; d++) {
                    let b0 = other[tc * STRIDE + d];
                    let b1 = other[(tc + 8u) * STRIDE + d];
                    let b2 = other[(tc + 16u) * STRIDE + d];
                    let b3 = other[(tc + 24u) * STRIDE + d];
#for i in 0..ROWS
                    dp$i += dots(own[(tr + $iu * TR) * STRIDE + d], b0, b1, b2, b3);
#end
                }
            }
            let at = base + tc;
            let end = queries.y - 1u;
#for j in 0..4
            let keys$j = key_range(min(at + 8u * $ju, end));
            let terms$j = row_terms(min(at + 8u * $ju, end), head);
#end
            let from_key = vec4(keys0.x, keys1.x, keys2.x, keys3.x);
            let to_key = vec4(keys0.y, keys1.y, keys2.y, keys3.y);
            let row_lse = vec4(terms0.x, terms1.x, terms2.x, terms3.x);
            let delta = vec4(terms0.y, terms1.y, terms2.y, terms3.y);
#for i in 0..ROWS
            let on$i = within(at, range$i) & (vec4(key$i) >= from_key) & (vec4(key$i) < to_key);
            let p$i = select(vec4(0.0), exp2(s$i * params.score_scale - row_lse), on$i);
            weights[(tr + $iu * TR) * STRIDE + tc] = p$i;
#end
#for c in 0..CHUNKS
            workgroupBarrier();
            for (var e = lane; e < 256u; e += WG_SIZE) {
                let row = base + e / 8u;
                let c = $cu * 8u + e % 8u;
                var b = vec4(0.0);
                if row < queries.y && c < D4 { b = dout[row * params.dout_ld + head * D4 + c]; }
                other[e / 8u * STRIDE + e % 8u] = b;
            }
            workgroupBarrier();
            for (var slot = 0u; slot < 8u; slot++) {
                let b0 = other[slot * STRIDE + tc];
                let b1 = other[(slot + 8u) * STRIDE + tc];
                let b2 = other[(slot + 16u) * STRIDE + tc];
                let b3 = other[(slot + 24u) * STRIDE + tc];
#for i in 0..ROWS
                let w$i = weights[(tr + $iu * TR) * STRIDE + slot];
                dv$i_$c += w$i.x * b0 + w$i.y * b1 + w$i.z * b2 + w$i.w * b3;
#end
            }
#end
            workgroupBarrier();
#for i in 0..ROWS
            weights[(tr + $iu * TR) * STRIDE + tc] = p$i * (dp$i - delta);
#end
#for c in 0..CHUNKS
            workgroupBarrier();
            for (var e = lane; e < 256u; e += WG_SIZE) {
                let row = base + e / 8u;
                let c = $cu * 8u + e % 8u;
                var b = vec4(0.0);
                if row < queries.y && c < D4 { b = q[row * params.q_ld + head * D4 + c]; }
                other[e / 8u * STRIDE + e % 8u] = b;
            }
            workgroupBarrier();
            for (var slot = 0u; slot < 8u; slot++) {
                let b0 = other[slot * STRIDE + tc];
                let b1 = other[(slot + 8u) * STRIDE + tc];
                let b2 = other[(slot + 16u) * STRIDE + tc];
                let b3 = other[(slot + 24u) * STRIDE + tc];
#for i in 0..ROWS
                let w$i = weights[(tr + $iu * TR) * STRIDE + slot];
                dk$i_$c += w$i.x * b0 + w$i.y * b1 + w$i.z * b2 + w$i.w * b3;
#end
            }
#end
        }
    }
#for i in 0..ROWS
    if first + tr + $iu * TR <= last {
        let dk_at = key$i * params.dk_ld + kv_head * D4;
        let dv_at = key$i * params.dv_ld + kv_head * D4;
#for c in 0..CHUNKS
        if $cu * 8u + tc < D4 {
            dk[dk_at + $cu * 8u + tc] = dk$i_$c * params.scale;
            dv[dv_at + $cu * 8u + tc] = dv$i_$c;
        }
#end
    }
#end
}
