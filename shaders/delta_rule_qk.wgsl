// The gated delta rule, backward: from the gradients of the queries and keys as the rule takes them, head by head, those of the raw ones,
// which the heads that share a key head add to in their order. Beside them the gradient of each head's raw write strength, and in `decays` the
// term of its row in the gradient of the decay. One workgroup per row and key head.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> differences: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dqk: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> decays: array<f32>;
@group(0) @binding(5) var<storage, read_write> dqkv: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> db: array<f32>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * groups.x;
    let row = index / params.key_heads;
    let key_head = index - row * params.key_heads;
    if row >= params.rows { return; }
    let shared_by = params.value_heads / params.key_heads;
    let quads = params.key_dim / 4u;
    let of_query = query_at(row, key_head) / 4u;
    let of_key = key_at(row, key_head) / 4u;
    var f: vec4<f32>;
    // The products of the whole gradients with the query and the key.
    var whole = vec2<f32>(0.0);
    for (var i = 0u; i < shared_by; i++) {
        let head = key_head * shared_by + i;
        f = factors[factors_at(row, head)];
        let of_dqk = factors_at(row, head) * 2u * quads;
        var products = vec4<f32>(0.0);
        for (var quad = lane; quad < quads; quad += WG_SIZE) {
            products.x += dot(qkv[of_query + quad], dqk[of_dqk + quad]);
            products.y += dot(qkv[of_key + quad], dqk[of_dqk + quads + quad]);
        }
        let of_value = value_at(row, head) / 4u;
        let of_difference = (row * params.out_ld + head * params.value_dim) / 4u;
        for (var quad = lane; quad < params.value_dim / 4u; quad += WG_SIZE) {
            let d = dqkv[of_value + quad];
            products.z += dot(d, qkv[of_value + quad]);
            products.w += dot(d, differences[of_difference + quad]);
        }
        let sums = workgroup_sums(products, lane);
        whole += sums.xy;
        if lane == 0u {
            let at = row * params.gate_ld + head;
            decays[at] = f.z * sums.x - sums.z;
            db[at] = (1.0 - f.y) * sums.w;
        }
    }
    // The factor of a query is 1 / sqrt(key_dim) of that which gives it length 1.
    let query_pull = whole.x * f.z * f.z * f32(params.key_dim);
    let key_pull = whole.y * f.w * f.w;
    for (var quad = lane; quad < quads; quad += WG_SIZE) {
        var dquery = vec4<f32>(0.0);
        var dkey = vec4<f32>(0.0);
        for (var i = 0u; i < shared_by; i++) {
            let of_dqk = factors_at(row, key_head * shared_by + i) * 2u * quads;
            dquery += dqk[of_dqk + quad];
            dkey += dqk[of_dqk + quads + quad];
        }
        dqkv[of_query + quad] = f.z * (dquery - qkv[of_query + quad] * query_pull);
        dqkv[of_key + quad] = f.w * (dkey - qkv[of_key + quad] * key_pull);
    }
}
