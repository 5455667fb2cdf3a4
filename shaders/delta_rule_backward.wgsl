// The gated delta rule, from the last row to the first: the gradients of the values, with the columns of the gradient of a head's state
// shared out as in delta_rule.wgsl. `states` takes the gradient of the state behind every interval.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dout: array<f32>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dqkv: array<f32>;

@compute @workgroup_size(COLS * PARTS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.value_dim + COLS - 1u) / COLS;
    let index = group.x + group.y * groups.x;
    let head = index / tiles;
    if head >= params.value_heads { return; }
    let own_column = (index - head * tiles) * COLS + lane % COLS;
    let column = min(own_column, params.value_dim - 1u);
    let part = lane / COLS;
    let quads = params.key_dim / 4u;
#for i in 0..QUADS
    let quad$i = part * QUADS + $iu;
    var s$i = vec4<f32>(0.0);
#end
    for (var blocks = (params.rows + BLOCK - 1u) / BLOCK; blocks > 0u; blocks--) {
        let first = (blocks - 1u) * BLOCK;
        let end = min(first + BLOCK, params.rows);
        if (end % params.interval == 0u || end == params.rows) && own_column < params.value_dim {
            let at = state_at(params.chunks + first / params.interval, head, column) / 4u;
#for i in 0..QUADS
            if quad$i < quads { states[at + quad$i] = s$i; }
#end
        }
#if STAGED
        stage(first, head, lane);
#end
        for (var row_end = end; row_end > first; row_end--) {
            let row = row_end - 1u;
            let t = row - first;
            let f = factors[factors_at(row, head)];
            let of_key = key_at(row, key_head(head)) / 4u;
            let of_query = query_at(row, key_head(head)) / 4u;
            let d = f.z * dout[row * params.out_ld + head * params.value_dim + column];
            var products = vec4<f32>(0.0);
#for i in 0..QUADS
#if STAGED
            s$i += d * queries[t * PARTS * QUADS + quad$i];
            products += s$i * keys[t * PARTS * QUADS + quad$i];
#else
            let k$i = qkv[of_key + $iu];
            s$i += d * qkv[of_query + $iu];
            products += s$i * k$i;
#end
#end
            var dwritten = products.x + products.y + products.z + products.w;
#if STAGED
            dwritten = sum_of_parts(dwritten, t, lane);
#end
            let dvalue = f.y * f.w * dwritten;
            let back = f.w * dvalue;
#for i in 0..QUADS
#if STAGED
            s$i = f.x * (s$i - back * keys[t * PARTS * QUADS + quad$i]);
#else
            s$i = f.x * (s$i - back * k$i);
#end
#end
            if part == 0u && own_column < params.value_dim { dqkv[value_at(row, head) + column] = dvalue; }
        }
#if STAGED
        workgroupBarrier();
#end
    }
}
