// Attention forward: a workgroup owns 32 items and walks the keys in tiles of 32. The softmax is rescaled on the way.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> key_ranges: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

// One value per thread, summed or compared across the eight threads of a row.
var<workgroup> partial: array<f32, 256>;

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
        keys = joined(keys, key_ranges[row]);
    }

    let tr = lane / 8u;
    let tc = lane % 8u;
#for i in 0..ROWS
    let item$i = min(first + tr + $iu * TR, last);
    let range$i = key_ranges[item$i / heads_per_key];
    var highest$i = LOWEST;
    var total$i = 0.0;
#for c in 0..CHUNKS
    var o$i_$c = vec4(0.0);
#end
#end
    for (var base = keys.x; base < keys.y; base += TILE) {
#for i in 0..ROWS
        var s$i = vec4(0.0);
#end
        for (var chunk = 0u; chunk < CHUNKS; chunk++) {
            workgroupBarrier();
            for (var e = lane; e < 256u; e += WG_SIZE) {
                let r = e / 8u;
                let c = chunk * 8u + e % 8u;
                let item = first + r;
                let row = item / heads_per_key;
                let head = kv_head * heads_per_key + item % heads_per_key;
                var a = vec4(0.0);
                if item <= last && c < D4 { a = q[row * params.q_ld + head * D4 + c]; }
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
        }
#for i in 0..ROWS
        let on$i = within(base + tc, range$i);
        s$i = select(vec4(LOWEST), s$i * params.score_scale, on$i);
        partial[(tr + $iu * TR) * 8u + tc] = max(max(s$i.x, s$i.y), max(s$i.z, s$i.w));
#end
        workgroupBarrier();
#for i in 0..ROWS
        let before$i = highest$i;
#for j in 0..8
        highest$i = max(highest$i, partial[(tr + $iu * TR) * 8u + $ju]);
#end
        let keep$i = exp2(before$i - highest$i);
        let p$i = select(vec4(0.0), exp2(s$i - highest$i), on$i);
        total$i = total$i * keep$i + (p$i.x + p$i.y + p$i.z + p$i.w);
        weights[(tr + $iu * TR) * STRIDE + tc] = p$i;
#for c in 0..CHUNKS
        o$i_$c *= keep$i;
#end
#end
#for c in 0..CHUNKS
        workgroupBarrier();
        for (var e = lane; e < 256u; e += WG_SIZE) {
            let key = base + e / 8u;
            let c = $cu * 8u + e % 8u;
            var b = vec4(0.0);
            if key < keys.y && c < D4 { b = v[key * params.v_ld + kv_head * D4 + c]; }
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
            o$i_$c += w$i.x * b0 + w$i.y * b1 + w$i.z * b2 + w$i.w * b3;
#end
        }
#end
    }
    workgroupBarrier();
#for i in 0..ROWS
    partial[(tr + $iu * TR) * 8u + tc] = total$i;
#end
    workgroupBarrier();
#for i in 0..ROWS
    total$i = 0.0;
#for j in 0..8
    total$i += partial[(tr + $iu * TR) * 8u + $ju];
#end
    if first + tr + $iu * TR <= last {
        let row = item$i / heads_per_key;
        let head = kv_head * heads_per_key + item$i % heads_per_key;
        let share = select(0.0, 1.0 / total$i, total$i > 0.0);
        let out_at = row * params.out_ld + head * D4;
#for c in 0..CHUNKS
        if $cu * 8u + tc < D4 { out[out_at + $cu * 8u + tc] = o$i_$c * share; }
#end
        if tc == 0u {
            let value = (highest$i + log2(total$i)) * LN_2;
            lse[head * params.rows + row] = select(LOWEST, value, total$i > 0.0);
        }
    }
#end
}
