// The gated delta rule, backward, once the differences between values and what the state held in their place and the gradients of the
// values are known: the gradients of the queries and keys as the rule takes them, by value head. The rows of a head's state and of its
// gradient do not depend on each other now, nor do the intervals, whose first and last states are known: a workgroup has ROWS rows in one
// interval, and each of its PARTS a stretch of QUADS quads of them. First from the interval's beginning to its end, then back.

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

#if STAGED
var<workgroup> written: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> dvalues: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> douts: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> of_queries: array<f32, BLOCK * ROWS * PARTS>;
var<workgroup> of_keys: array<f32, BLOCK * ROWS * PARTS>;

// The rows of a block into workgroup memory.
fn stage(first: u32, head: u32, lane: u32) {
    let quads = params.value_dim / 4u;
    for (var i = lane; i < BLOCK * PARTS * QUADS; i += ROWS * PARTS) {
        let row = first + i / (PARTS * QUADS);
        let quad = i % (PARTS * QUADS);
        written[i] = vec4<f32>(0.0);
        dvalues[i] = vec4<f32>(0.0);
        douts[i] = vec4<f32>(0.0);
        if row < params.rows && quad < quads {
            let at = (row * params.out_ld + head * params.value_dim) / 4u + quad;
            written[i] = differences[at];
            dvalues[i] = dqkv[value_at(row, head) / 4u + quad];
            douts[i] = dout[at];
        }
    }
    workgroupBarrier();
}
#end

fn dqk_at(row: u32, head: u32) -> u32 {
    return (row * params.value_heads + head) * 2u * params.key_dim;
}

fn total(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

@compute @workgroup_size(ROWS * PARTS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.key_dim + ROWS - 1u) / ROWS;
    let index = group.x + group.y * groups.x;
    let tile = index % tiles;
    let head = index / tiles % params.value_heads;
    let chunk = index / tiles / params.value_heads;
    if chunk >= params.chunks { return; }
    let own_feature = tile * ROWS + lane % ROWS;
    let feature = min(own_feature, params.key_dim - 1u);
    let part = lane / ROWS;
    let quads = params.value_dim / 4u;
    let begin = chunk * params.interval;
    let end = min(begin + params.interval, params.rows);
#for i in 0..QUADS
    let quad$i = part * QUADS + $iu;
    var s$i = vec4<f32>(0.0);
    if quad$i < quads {
        let at = state_at(chunk, head, 4u * quad$i) + feature;
        let step = params.key_dim;
        s$i = vec4<f32>(states[at], states[at + step], states[at + 2u * step], states[at + 3u * step]);
    }
#end
    for (var first = begin; first < end; first += BLOCK) {
        let count = min(BLOCK, end - first);
#if STAGED
        stage(first, head, lane);
#end
        for (var t = 0u; t < count; t++) {
            let row = first + t;
            let f = factors[factors_at(row, head)];
            let key = f.y * f.w * qkv[key_at(row, key_head(head)) + feature];
            let of_out = (row * params.out_ld + head * params.value_dim) / 4u;
            let of_value = value_at(row, head) / 4u;
            var query_products = vec4<f32>(0.0);
            var key_products = vec4<f32>(0.0);
#for i in 0..QUADS
            s$i *= f.x;
#if STAGED
            key_products += s$i * dvalues[t * PARTS * QUADS + quad$i];
            s$i += key * written[t * PARTS * QUADS + quad$i];
            query_products += s$i * douts[t * PARTS * QUADS + quad$i];
#else
            key_products += s$i * dqkv[of_value + $iu];
            s$i += key * differences[of_out + $iu];
            query_products += s$i * dout[of_out + $iu];
#end
#end
#if STAGED
            of_queries[t * ROWS * PARTS + lane] = total(query_products);
            of_keys[t * ROWS * PARTS + lane] = total(key_products);
#else
            if own_feature < params.key_dim {
                dqk[dqk_at(row, head) + feature] = total(query_products);
                dqk[dqk_at(row, head) + params.key_dim + feature] = -total(key_products);
            }
#end
        }
#if STAGED
        workgroupBarrier();
        for (var i = lane; i < count * ROWS; i += ROWS * PARTS) {
            let at = tile * ROWS + i % ROWS;
            var query = 0.0;
            var key = 0.0;
            for (var p = 0u; p < PARTS; p++) {
                query += of_queries[i / ROWS * ROWS * PARTS + p * ROWS + i % ROWS];
                key += of_keys[i / ROWS * ROWS * PARTS + p * ROWS + i % ROWS];
            }
            if at < params.key_dim {
                dqk[dqk_at(first + i / ROWS, head) + at] = query;
                dqk[dqk_at(first + i / ROWS, head) + params.key_dim + at] = -key;
            }
        }
#end
    }
    var anchor = 0.0;
#for i in 0..QUADS
    if quad$i < quads {
        let at = state_at(params.chunks + chunk, head, 4u * quad$i) + feature;
        let step = params.key_dim;
        let d = vec4<f32>(states[at], states[at + step], states[at + 2u * step], states[at + 3u * step]);
        anchor += dot(s$i, d);
        s$i = d;
    }
#end
    anchor = select(0.0, anchor, own_feature < params.key_dim);
#if STAGED
    // The barriers of the sum also part the gradients of the keys that are written above from their readers below.
    storageBarrier();
    anchor = workgroup_sum(anchor, lane);
    if lane == 0u { anchors[(chunk * params.value_heads + head) * params.anchors + tile] = anchor; }
#else
    anchors[(chunk * params.value_heads + head) * params.anchors + own_feature] = anchor;
#end
    for (var blocks = (end - begin + BLOCK - 1u) / BLOCK; blocks > 0u; blocks--) {
        let first = begin + (blocks - 1u) * BLOCK;
        let count = min(BLOCK, end - first);
#if STAGED
        stage(first, head, lane);
#end
        for (var left = count; left > 0u; left--) {
            let t = left - 1u;
            let row = first + t;
            let f = factors[factors_at(row, head)];
            let query = f.z * qkv[query_at(row, key_head(head)) + feature];
            let key = f.w * qkv[key_at(row, key_head(head)) + feature];
            let of_out = (row * params.out_ld + head * params.value_dim) / 4u;
            let of_value = value_at(row, head) / 4u;
            var key_products = vec4<f32>(0.0);
#for i in 0..QUADS
#if STAGED
            s$i += query * douts[t * PARTS * QUADS + quad$i];
            key_products += s$i * written[t * PARTS * QUADS + quad$i];
            s$i = f.x * (s$i - key * dvalues[t * PARTS * QUADS + quad$i]);
#else
            s$i += query * dout[of_out + $iu];
            key_products += s$i * differences[of_out + $iu];
            s$i = f.x * (s$i - key * dqkv[of_value + $iu]);
#end
#end
            let of_key = f.y * total(key_products);
#if STAGED
            of_keys[t * ROWS * PARTS + lane] = of_key;
#else
            if own_feature < params.key_dim { dqk[dqk_at(row, head) + params.key_dim + feature] += of_key; }
#end
        }
#if STAGED
        workgroupBarrier();
        for (var i = lane; i < count * ROWS; i += ROWS * PARTS) {
            let at = tile * ROWS + i % ROWS;
            var key = 0.0;
            for (var p = 0u; p < PARTS; p++) { key += of_keys[i / ROWS * ROWS * PARTS + p * ROWS + i % ROWS]; }
            if at < params.key_dim { dqk[dqk_at(first + i / ROWS, head) + params.key_dim + at] += key; }
        }
#end
    }
}
