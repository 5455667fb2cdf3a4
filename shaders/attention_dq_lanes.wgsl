// Attention's query gradient for software adapters: one item per lane, keys read at addresses all lanes share.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dq: array<vec4<f32>>;

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
        keys = joined(keys, key_range(row));
    }

    let item = min(first + lane, last);
    let row = item / heads_per_key;
    let head = kv_head * heads_per_key + item % heads_per_key;
    let range = key_range(row);
    let terms = row_terms(row, head);
    let q_at = row * params.q_ld + head * D4;
    let dout_at = row * params.dout_ld + head * D4;
#for d in 0..D4
    let q$d = q[q_at + $du] * params.score_scale;
    let dout$d = dout[dout_at + $du];
    var dq$d = vec4(0.0);
#end
    for (var base = keys.x; base < keys.y; base += BLOCK) {
#for j in 0..BLOCK
        let key$j = min(base + $ju, keys.y - 1u);
        let k_at$j = key$j * params.k_ld + kv_head * D4;
        let v_at$j = key$j * params.v_ld + kv_head * D4;
        var s$j = 0.0;
        var dp$j = 0.0;
#end
#for d in 0..D4
#for j in 0..BLOCK
        s$j += dot(q$d, k[k_at$j + $du]);
#end
#end
#for d in 0..D4
#for j in 0..BLOCK
        dp$j += dot(dout$d, v[v_at$j + $du]);
#end
#end
#for j in 0..BLOCK
        let on$j = base + $ju >= range.x && base + $ju < range.y;
        let ds$j = select(0.0, exp2(s$j - terms.x) * (dp$j - terms.y), on$j);
#end
#for d in 0..D4
#for j in 0..BLOCK
        dq$d += ds$j * k[k_at$j + $du];
#end
#end
    }
    if first + lane > last { return; }
    let dq_at = row * params.dq_ld + head * D4;
#for d in 0..D4
    dq[dq_at + $du] = dq$d * params.scale;
#end
}
