// The gated delta rule, backward, once the differences between values and what the state held in their place and the gradients of the
// values are known: the gradients of the queries and keys as the rule takes them, by value head. The rows of a head's state and of its
// gradient do not depend on each other now, nor do the intervals, whose first and last states are known: a workgroup has LANES rows in one
// interval, QUADS quads of each. First from the interval's beginning to its end, then back.

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dqkv: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> differences: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> states: array<f32>;
// By row and head the gradient of the query, then that of the key.
@group(0) @binding(6) var<storage, read_write> dqk: array<f32>;
// By interval and head the product of the state at its end and the gradient of it, in as many parts as are summed apart.
@group(0) @binding(7) var<storage, read_write> anchors: array<f32>;

fn dqk_at(row: u32, head: u32) -> u32 {
    return (row * params.value_heads + head) * 2u * params.key_dim;
}

fn total(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.key_dim + LANES - 1u) / LANES;
    let index = group.x + group.y * groups.x;
    let tile = index % tiles;
    let head = index / tiles % params.value_heads;
    let chunk = index / tiles / params.value_heads;
    if chunk >= params.chunks { return; }
    let own_feature = tile * LANES + lane;
    let feature = min(own_feature, params.key_dim - 1u);
    let step = params.key_dim;
    let begin = chunk * params.interval;
    let end = min(begin + params.interval, params.rows);
#for i in 0..QUADS
    let at$i = state_at(chunk, head, 4u * $iu) + feature;
    var s$i = vec4<f32>(states[at$i], states[at$i + step], states[at$i + 2u * step], states[at$i + 3u * step]);
#end
    for (var row = begin; row < end; row++) {
        let f = factors[factors_at(row, head)];
        let key = f.y * f.w * qkv[key_at(row, key_head(head)) + feature];
        let of_out = (row * params.out_ld + head * params.value_dim) / 4u;
        let of_value = value_at(row, head) / 4u;
        var query_products = vec4<f32>(0.0);
        var key_products = vec4<f32>(0.0);
#for i in 0..QUADS
        s$i *= f.x;
        key_products += s$i * dqkv[of_value + $iu];
        s$i += key * differences[of_out + $iu];
        query_products += s$i * dout[of_out + $iu];
#end
        if own_feature < params.key_dim {
            dqk[dqk_at(row, head) + feature] = total(query_products);
            dqk[dqk_at(row, head) + params.key_dim + feature] = -total(key_products);
        }
    }
    var anchor = 0.0;
#for i in 0..QUADS
    let behind$i = state_at(params.chunks + chunk, head, 4u * $iu) + feature;
    let d$i = vec4<f32>(states[behind$i], states[behind$i + step], states[behind$i + 2u * step], states[behind$i + 3u * step]);
    anchor += dot(s$i, d$i);
    s$i = d$i;
#end
    anchor = select(0.0, anchor, own_feature < params.key_dim);
    anchors[(chunk * params.value_heads + head) * params.anchors + own_feature] = anchor;
    for (var row_end = end; row_end > begin; row_end--) {
        let row = row_end - 1u;
        let f = factors[factors_at(row, head)];
        let query = f.z * qkv[query_at(row, key_head(head)) + feature];
        let key = f.w * qkv[key_at(row, key_head(head)) + feature];
        let of_out = (row * params.out_ld + head * params.value_dim) / 4u;
        let of_value = value_at(row, head) / 4u;
        var key_products = vec4<f32>(0.0);
#for i in 0..QUADS
        s$i += query * dout[of_out + $iu];
        key_products += s$i * differences[of_out + $iu];
        s$i = f.x * (s$i - key * dqkv[of_value + $iu]);
#end
        let of_key = f.y * total(key_products);
        if own_feature < params.key_dim { dqk[dqk_at(row, head) + params.key_dim + feature] += of_key; }
    }
}
