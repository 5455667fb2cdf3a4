// Attention's query gradient: a workgroup owns 32 items and walks the keys in tiles of 32.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dq: array<vec4<f32>>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let items = params.rows * heads_per_key;
    let tiles = (items + TILE - 1u) / TILE;
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * TILE;
    let last = min(first + TILE, items) - 1u;
    var keys = vec2(0xffffffffu, 0u);
    for (var row = first / heads_per_key; row <= last / heads_per_key; row++) {
        keys = joined(keys, key_range(row));
    }

    let tr = lane / 8u;
    let tc = lane % 8u;
#for i in 0..ROWS
    let item$i = min(first + tr + $iu * TR, last);
    let row$i = item$i / heads_per_key;
    let head$i = kv_head * heads_per_key + item$i % heads_per_key;
    let range$i = key_range(row$i);
    let terms$i = row_terms(row$i, head$i);
#for c in 0..CHUNKS
    var dq$i_$c = vec4(0.0);
#end
#end
    for (var base = keys.x; base < keys.y; base += TILE) {
#for i in 0..ROWS
        var s$i = vec4(0.0);
        var dp$i = vec4(0.0);
#end
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            for (var e = lane; e < 256u; e += WG_SIZE) {
                let r = e / 8u;
                let c = chunk * 8u + e % 8u;
                let item = first + r;
                let head = kv_head * heads_per_key + item % heads_per_key;
                var a = vec4(0.0);
                if item <= last && c < D4 { a = q[item / heads_per_key * params.q_ld + head * D4 + c]; }
                own[r * STRIDE + e % 8u] = a;
                var b = vec4(0.0);
                if base + r < keys.y && c < D4 { b = k[(base + r) * params.k_ld + kv_head * D4 + c]; }
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
                let item = first + r;
                let head = kv_head * heads_per_key + item % heads_per_key;
                var a = vec4(0.0);
                if item <= last && c < D4 { a = dout[item / heads_per_key * params.dout_ld + head * D4 + c]; }
                own[r * STRIDE + e % 8u] = a;
                var b = vec4(0.0);
                if base + r < keys.y && c < D4 { b = v[(base + r) * params.v_ld + kv_head * D4 + c]; }
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
#for i in 0..ROWS
        let p$i = select(vec4(0.0), exp2(s$i * params.score_scale - terms$i.x), within(base + tc, range$i));
        weights[(tr + $iu * TR) * STRIDE + tc] = p$i * (dp$i - terms$i.y);
#end
#for c in 0..CHUNKS
        workgroupBarrier();
        for (var e = lane; e < 256u; e += WG_SIZE) {
            let key = base + e / 8u;
            let c = $cu * 8u + e % 8u;
            var b = vec4(0.0);
            if key < keys.y && c < D4 { b = k[key * params.k_ld + kv_head * D4 + c]; }
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
            dq$i_$c += w$i.x * b0 + w$i.y * b1 + w$i.z * b2 + w$i.w * b3;
#end
        }
#end
    }
#for i in 0..ROWS
    if first + tr + $iu * TR <= last {
        let dq_at = row$i * params.dq_ld + head$i * D4;
#for c in 0..CHUNKS
        if $cu * 8u + tc < D4 { dq[dq_at + $cu * 8u + tc] = dq$i_$c * params.scale; }
#end
    }
#end
}
