// Attention forward for software adapters: one item per lane, keys read at addresses all lanes share, no workgroup memory.

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
    let tiles = (items + LANES - 1u) / LANES;
    let tile = group.x + group.y * groups.x;
    let kv_head = tile / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (tile % tiles) * LANES;
    let last = min(first + LANES, items) - 1u;
    var keys = vec2(0xffffffffu, 0u);
    for (var row = first / heads_per_key; row <= last / heads_per_key; row++) {
        keys = joined(keys, key_ranges[row]);
    }

    let item = min(first + lane, last);
    let row = item / heads_per_key;
    let head = kv_head * heads_per_key + item % heads_per_key;
    let range = key_ranges[row];
    let q_at = row * params.q_ld + head * D4;
#for d in 0..D4
    let q$d = q[q_at + $du] * params.score_scale;
    var o$d = vec4(0.0);
#end
    var highest = LOWEST;
    var total = 0.0;
    for (var base = keys.x; base < keys.y; base += BLOCK) {
#for j in 0..BLOCK
        let key$j = min(base + $ju, keys.y - 1u);
        let k_at$j = key$j * params.k_ld + kv_head * D4;
        let v_at$j = key$j * params.v_ld + kv_head * D4;
        let on$j = base + $ju >= range.x && base + $ju < range.y;
        var s$j = 0.0;
#end
#for d in 0..D4
#for j in 0..BLOCK
        s$j += dot(q$d, k[k_at$j + $du]);
#end
#end
        let before = highest;
#for j in 0..BLOCK
        highest = max(highest, select(LOWEST, s$j, on$j));
#end
        let keep = exp2(before - highest);
        total *= keep;
#for j in 0..BLOCK
        let p$j = select(0.0, exp2(s$j - highest), on$j);
        total += p$j;
#end
#for d in 0..D4
        o$d *= keep;
#for j in 0..BLOCK
        o$d += p$j * v[v_at$j + $du];
#end
#end
    }
    if first + lane > last { return; }
    let share = select(0.0, 1.0 / total, total > 0.0);
    let out_at = row * params.out_ld + head * D4;
#for d in 0..D4
    out[out_at + $du] = o$d * share;
#end
    lse[head * params.rows + row] = select(LOWEST, (highest + log2(total)) * LN_2, total > 0.0);
}
