// The gated delta rule, from the last row to the first: the gradients of the values, with the columns of the gradient of a head's state
// shared out as in delta_rule.wgsl. `states` takes the gradient of the state behind every interval.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dout: array<f32>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.value_dim + LANES - 1u) / LANES;
    let index = group.x + group.y * groups.x;
    let head = index / tiles;
    if head >= params.value_heads { return; }
    let own_column = (index - head * tiles) * LANES + lane;
    let column = min(own_column, params.value_dim - 1u);
#for i in 0..QUADS
    var s$i = vec4<f32>(0.0);
#end
    for (var end = params.rows; end > 0u; end--) {
        let row = end - 1u;
        if (end % params.interval == 0u || end == params.rows) && own_column < params.value_dim {
            let at = state_at(params.chunks + row / params.interval, head, column) / 4u;
#for i in 0..QUADS
            states[at + $iu] = s$i;
#end
        }
        let f = factors[factors_at(row, head)];
        let of_key = key_at(row, key_head(head)) / 4u;
        let of_query = query_at(row, key_head(head)) / 4u;
        let d = f.z * dout[row * params.out_ld + head * params.value_dim + column];
        var products = vec4<f32>(0.0);
#for i in 0..QUADS
        let k$i = qkv[of_key + $iu];
        s$i += d * qkv[of_query + $iu];
        products += s$i * k$i;
#end
        let dvalue = f.y * f.w * (products.x + products.y + products.z + products.w);
        let back = f.w * dvalue;
#for i in 0..QUADS
        s$i = f.x * (s$i - back * k$i);
#end
        if own_column < params.value_dim { dqkv[value_at(row, head) + column] = dvalue; }
    }
}
