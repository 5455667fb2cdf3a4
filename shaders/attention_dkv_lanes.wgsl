// Attention's key and value gradients for software adapters: one key per lane, queries of the whole group of heads read at
// addresses all lanes share.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dv: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let tiles = (params.keys + LANES - 1u) / LANES;
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * LANES;
    let last = min(first + LANES, params.keys) - 1u;
    var queries = vec2(0xffffffffu, 0u);
    for (var key = first; key <= last; key++) {
        queries = joined(queries, query_range(key));
    }

    let key = min(first + lane, last);
    let range = query_range(key);
    let k_at = key * params.k_ld + kv_head * D4;
    let v_at = key * params.v_ld + kv_head * D4;
#for d in 0..D4
    let k$d = k[k_at + $du] * params.score_scale;
    let v$d = v[v_at + $du];
    var dk$d = vec4(0.0);
    var dv$d = vec4(0.0);
#end
    for (var head = kv_head * heads_per_key; head < (kv_head + 1u) * heads_per_key; head++) {
        for (var base = queries.x; base < queries.y; base += BLOCK) {
#for j in 0..BLOCK
            let row$j = min(base + $ju, queries.y - 1u);
            let q_at$j = row$j * params.q_ld + head * D4;
            let dout_at$j = row$j * params.dout_ld + head * D4;
            var s$j = 0.0;
            var dp$j = 0.0;
#end
#for d in 0..D4
#for j in 0..BLOCK
            s$j += dot(k$d, q[q_at$j + $du]);
#end
#end
#for d in 0..D4
#for j in 0..BLOCK
            dp$j += dot(v$d, dout[dout_at$j + $du]);
#end
#end
#for j in 0..BLOCK
            let keys$j = key_range(row$j);
            let terms$j = row_terms(row$j, head);
            let on$j = base + $ju >= range.x && base + $ju < range.y && key >= keys$j.x && key < keys$j.y;
            let p$j = select(0.0, exp2(s$j - terms$j.x), on$j);
            let ds$j = p$j * (dp$j - terms$j.y);
#end
#for d in 0..D4
#for j in 0..BLOCK
            dv$d += p$j * dout[dout_at$j + $du];
#end
#end
#for d in 0..D4
#for j in 0..BLOCK
            dk$d += ds$j * q[q_at$j + $du];
#end
#end
        }
    }
    if first + lane > last { return; }
    let dk_at = key * params.dk_ld + kv_head * D4;
    let dv_at = key * params.dv_ld + kv_head * D4;
#for d in 0..D4
    dk[dk_at + $du] = dk$d * params.scale;
    dv[dv_at + $du] = dv$d;
#end
}
