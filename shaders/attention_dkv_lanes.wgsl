// Attention's key and value gradients for software adapters: ITEMS keys per lane, The queries of the whole group of heads are
// read as attention_forward_lanes reads keys.

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
    let tiles = (params.keys + LANES * ITEMS - 1u) / (LANES * ITEMS);
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * LANES * ITEMS;
    let last = min(first + LANES * ITEMS, params.keys) - 1u;
    var queries = vec2(0xffffffffu, 0u);
    for (var key = first; key <= last; key++) {
        queries = joined(queries, query_range(key));
    }

#for i in 0..ITEMS
    let key$i = min(first + lane + $iu * LANES, last);
    let range$i = query_range(key$i);
    let k_at$i = key$i * params.k_ld + kv_head * D4;
    let v_at$i = key$i * params.v_ld + kv_head * D4;
#for d in 0..D4
    let k$i_$d = k[k_at$i + $du] * params.score_scale;
    let v$i_$d = v[v_at$i + $du];
    var dk$i_$d = vec4(0.0);
    var dv$i_$d = vec4(0.0);
#end
#end
    for (var head = kv_head * heads_per_key; head < (kv_head + 1u) * heads_per_key; head++) {
        for (var base = queries.x; base < queries.y; base += BLOCK) {
#if BROADCAST
            let own = min(base + lane, queries.y - 1u);
            let q_at = own * params.q_ld + head * D4;
            let dout_at = own * params.dout_ld + head * D4;
            let own_keys = key_range(own);
            let own_terms = row_terms(own, head);
#else
#for j in 0..BLOCK
            let row$j = min(base + $ju, queries.y - 1u);
            let q_at$j = row$j * params.q_ld + head * D4;
            let dout_at$j = row$j * params.dout_ld + head * D4;
#end
#end
#for j in 0..BLOCK
#for i in 0..ITEMS
            var s$i_$j = 0.0;
            var dp$i_$j = 0.0;
#end
#end
#for d in 0..D4
#if BROADCAST
            let own_q_$d = q[q_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
            let q$j_$d = subgroupBroadcast(own_q_$d, $ju);
#else
            let q$j_$d = q[q_at$j + $du];
#end
#for i in 0..ITEMS
            s$i_$j += dot(k$i_$d, q$j_$d);
#end
#end
#end
#for d in 0..D4
#if BROADCAST
            let own_dout_$d = dout[dout_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
            let dout$j_$d = subgroupBroadcast(own_dout_$d, $ju);
#else
            let dout$j_$d = dout[dout_at$j + $du];
#end
#for i in 0..ITEMS
            dp$i_$j += dot(v$i_$d, dout$j_$d);
#end
#end
#end
#for j in 0..BLOCK
            let at$j = base + $ju;
#if BROADCAST
            let keys$j = subgroupBroadcast(own_keys, $ju);
            let terms$j = subgroupBroadcast(own_terms, $ju);
#else
            let keys$j = key_range(row$j);
            let terms$j = row_terms(row$j, head);
#end
#for i in 0..ITEMS
            let asked$i_$j = at$j >= range$i.x && at$j < range$i.y;
            let on$i_$j = asked$i_$j && key$i >= keys$j.x && key$i < keys$j.y;
#if CAP
            s$i_$j = capped(s$i_$j);
            let p$i_$j = select(0.0, exp2(s$i_$j - terms$j.x), on$i_$j);
            let ds$i_$j = cap_slope(s$i_$j) * p$i_$j * (dp$i_$j - terms$j.y);
#else
            let p$i_$j = select(0.0, exp2(s$i_$j - terms$j.x), on$i_$j);
            let ds$i_$j = p$i_$j * (dp$i_$j - terms$j.y);
#end
#end
#end
#for d in 0..D4
#if BROADCAST
            let own_dout_again_$d = dout[dout_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
            let dout_again$j_$d = subgroupBroadcast(own_dout_again_$d, $ju);
#else
            let dout_again$j_$d = dout[dout_at$j + $du];
#end
#for i in 0..ITEMS
            dv$i_$d += p$i_$j * dout_again$j_$d;
#end
#end
#end
#for d in 0..D4
#if BROADCAST
            let own_q_again_$d = q[q_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
            let q_again$j_$d = subgroupBroadcast(own_q_again_$d, $ju);
#else
            let q_again$j_$d = q[q_at$j + $du];
#end
#for i in 0..ITEMS
            dk$i_$d += ds$i_$j * q_again$j_$d;
#end
#end
#end
        }
    }
#for i in 0..ITEMS
    if first + lane + $iu * LANES <= last {
        let dk_at = key$i * params.dk_ld + kv_head * D4;
        let dv_at = key$i * params.dv_ld + kv_head * D4;
#for d in 0..D4
        dk[dk_at + $du] = dk$i_$d * params.scale;
        dv[dv_at + $du] = dv$i_$d;
#end
    }
#end
}
