// The factors of the gated delta rule for each row and value head, beside q, k and v: the decay of the state, 0 where a sequence begins; the
// write strength; and the factors that give q and k their length. One invocation per row and head.

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> a_log: array<f32>;
@group(0) @binding(5) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> factors: array<vec4<f32>>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let row = index / params.value_heads;
    let head = index - row * params.value_heads;
    if row >= params.rows { return; }
    let of_query = query_at(row, key_head(head)) / 4u;
    let of_key = key_at(row, key_head(head)) / 4u;
    var query_squares = 0.0;
    var key_squares = 0.0;
    for (var i = 0u; i < params.key_dim / 4u; i++) {
        let q = qkv[of_query + i];
        let k = qkv[of_key + i];
        query_squares += dot(q, q);
        key_squares += dot(k, k);
    }
    let at = row * params.gate_ld + head;
    let decay = exp(log_decay(a[at] + dt_bias[head], a_log[head]));
    factors[index] = vec4<f32>(
        select(decay, 0.0, positions[row] == 0u),
        logistic(b[at]),
        inverseSqrt((query_squares + EPS) * f32(params.key_dim)),
        inverseSqrt(key_squares + EPS),
    );
}
