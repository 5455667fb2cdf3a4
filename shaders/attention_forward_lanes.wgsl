// Attention forward for software adapters: ITEMS items per lane, no workgroup memory. Keys are read a BLOCK at a time: with
// BROADCAST each lane reads one and hands it to the others, otherwise all lanes read the same addresses.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> key_ranges: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let items = params.rows * heads_per_key;
    let tiles = (items + LANES * ITEMS - 1u) / (LANES * ITEMS);
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * LANES * ITEMS;
    let last = min(first + LANES * ITEMS, items) - 1u;
    var keys = vec2(0xffffffffu, 0u);
    for (var row = first / heads_per_key; row <= last / heads_per_key; row++) {
        keys = joined(keys, key_ranges[params.first_row + row]);
    }

#for i in 0..ITEMS
    let item$i = min(first + lane + $iu * LANES, last);
    let row$i = params.first_row + item$i / heads_per_key;
    let head$i = kv_head * heads_per_key + item$i % heads_per_key;
    let range$i = key_ranges[row$i];
    let q_at$i = row$i * params.q_ld + head$i * D4;
    var highest$i = LOWEST;
    var total$i = 0.0;
#for d in 0..D4
    let q$i_$d = q[q_at$i + $du] * params.score_scale;
    var o$i_$d = vec4(0.0);
#end
#end
    for (var base = keys.x; base < keys.y; base += BLOCK) {
#if BROADCAST
        let own = min(base + lane, keys.y - 1u);
        let k_at = own * params.k_ld + kv_head * D4;
        let v_at = own * params.v_ld + kv_head * D4;
#else
#for j in 0..BLOCK
        let key$j = min(base + $ju, keys.y - 1u);
        let k_at$j = key$j * params.k_ld + kv_head * D4;
        let v_at$j = key$j * params.v_ld + kv_head * D4;
#end
#end
#for j in 0..BLOCK
#for i in 0..ITEMS
        var s$i_$j = 0.0;
#end
#end
#for d in 0..D4
#if BROADCAST
        let own_k_$d = k[k_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
        let k$j_$d = subgroupBroadcast(own_k_$d, $ju);
#else
        let k$j_$d = k[k_at$j + $du];
#end
#for i in 0..ITEMS
        s$i_$j += dot(q$i_$d, k$j_$d);
#end
#end
#end
#if CAP
#for i in 0..ITEMS
#for j in 0..BLOCK
        s$i_$j = capped(s$i_$j);
#end
#end
#end
#for i in 0..ITEMS
        let before$i = highest$i;
#for j in 0..BLOCK
        let on$i_$j = base + $ju >= range$i.x && base + $ju < range$i.y;
        highest$i = max(highest$i, select(LOWEST, s$i_$j, on$i_$j));
#end
        let keep$i = exp2(before$i - highest$i);
        total$i *= keep$i;
#for j in 0..BLOCK
        let p$i_$j = select(0.0, exp2(s$i_$j - highest$i), on$i_$j);
        total$i += p$i_$j;
#end
#for d in 0..D4
        o$i_$d *= keep$i;
#end
#end
#for d in 0..D4
#if BROADCAST
        let own_v_$d = v[v_at + $du];
#end
#for j in 0..BLOCK
#if BROADCAST
        let v$j_$d = subgroupBroadcast(own_v_$d, $ju);
#else
        let v$j_$d = v[v_at$j + $du];
#end
#for i in 0..ITEMS
        o$i_$d += p$i_$j * v$j_$d;
#end
#end
#end
    }
#for i in 0..ITEMS
    if first + lane + $iu * LANES <= last {
        let share = select(0.0, 1.0 / total$i, total$i > 0.0);
        let out_at = row$i * params.out_ld + head$i * D4;
#for d in 0..D4
        out[out_at + $du] = o$i_$d * share;
#end
        let value = (highest$i + log2(total$i)) * LN_2;
        lse[head$i * params.rows + row$i - params.first_row] = select(LOWEST, value, total$i > 0.0);
    }
#end
}
