// The gated delta rule, row after row. The columns of a head's state do not depend on each other: a workgroup has COLS of them, and each
// of its PARTS a stretch of QUADS quads of them, of which an invocation keeps those of one column. STAGED: workgroup memory holds the
// rows of a block, and exchanges the parts' sums. REMAKE, without STAGED: the differences between values and what the state holds in their
// place are the result, and `states` takes the state before every interval. Else the result is that of the layer, and `states` is the
// state that the pass goes on from, where it does.

@group(0) @binding(0) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> values: array<f32>;
@group(0) @binding(2) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

#if STAGED
var<workgroup> results: array<f32, BLOCK * COLS * PARTS>;
var<workgroup> keys: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> queries: array<vec4<f32>, BLOCK * PARTS * QUADS>;
var<workgroup> sums: array<f32, 2 * COLS * PARTS>;

// Loads the keys and queries of a block of rows.
fn stage(first: u32, head: u32, lane: u32) {
    for (var i = lane; i < BLOCK * PARTS * QUADS; i += COLS * PARTS) {
        let row = first + i / (PARTS * QUADS);
        let quad = i % (PARTS * QUADS);
        let within = row < params.rows && quad < params.key_dim / 4u;
        var key = vec4<f32>(0.0);
        if within { key = qkv[key_at(row, key_head(head)) / 4u + quad]; }
        keys[i] = key;
        var query = vec4<f32>(0.0);
        if within { query = qkv[query_at(row, key_head(head)) / 4u + quad]; }
        queries[i] = query;
    }
    workgroupBarrier();
}

// The sum of a column's parts. Two halves in turn: a part that is ahead by a row leaves the sums of row t alone.
fn sum_of_parts(part: f32, t: u32, lane: u32) -> f32 {
    let half = t % 2u * COLS * PARTS;
    sums[half + lane] = part;
    workgroupBarrier();
    var sum = 0.0;
    for (var p = 0u; p < PARTS; p++) { sum += sums[half + p * COLS + lane % COLS]; }
    return sum;
}
#end

@compute @workgroup_size(COLS * PARTS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.value_dim + COLS - 1u) / COLS;
    let index = group.x + group.y * groups.x;
    let head = index / tiles;
    if head >= params.value_heads { return; }
    let first_column = (index - head * tiles) * COLS;
    let own_column = first_column + lane % COLS;
    let column = min(own_column, params.value_dim - 1u);
    let part = lane / COLS;
    let quads = params.key_dim / 4u;
#for i in 0..QUADS
    let quad$i = part * QUADS + $iu;
    var s$i = vec4<f32>(0.0);
#end
#if REMAKE
#else
    // A sequence that begins here has no past, whatever the state holds.
    if params.carried != 0u && factors[factors_at(0u, head)].x != 0.0 {
        let at = state_at(0u, head, column) / 4u;
#for i in 0..QUADS
        if quad$i < quads { s$i = states[at + quad$i]; }
#end
    }
#end
    for (var first = 0u; first < params.rows; first += BLOCK) {
        let count = min(BLOCK, params.rows - first);
#if REMAKE
        if first % params.interval == 0u && own_column < params.value_dim {
            let at = state_at(first / params.interval, head, column) / 4u;
#for i in 0..QUADS
            if quad$i < quads { states[at + quad$i] = s$i; }
#end
        }
#end
#if STAGED
        stage(first, head, lane);
#end
        for (var t = 0u; t < count; t++) {
            let row = first + t;
            let f = factors[factors_at(row, head)];
            let of_key = key_at(row, key_head(head)) / 4u;
            let of_query = query_at(row, key_head(head)) / 4u;
            var products = vec4<f32>(0.0);
#for i in 0..QUADS
#if STAGED
            products += s$i * keys[t * PARTS * QUADS + quad$i];
#else
            let k$i = qkv[of_key + $iu];
            products += s$i * k$i;
#end
#end
            var held = products.x + products.y + products.z + products.w;
#if STAGED
            held = sum_of_parts(held, t, lane);
#end
            let difference = values[value_at(row, head) + column] - f.x * f.w * held;
            let written = f.y * f.w * difference;
            var results_of = vec4<f32>(0.0);
#for i in 0..QUADS
#if STAGED
            s$i = f.x * s$i + written * keys[t * PARTS * QUADS + quad$i];
#else
            s$i = f.x * s$i + written * k$i;
#end
#if REMAKE
#else
#if STAGED
            results_of += s$i * queries[t * PARTS * QUADS + quad$i];
#else
            results_of += s$i * qkv[of_query + $iu];
#end
#end
#end
            let to = row * params.out_ld + head * params.value_dim + column;
#if REMAKE
            if part == 0u && own_column < params.value_dim { out[to] = difference; }
#else
            let result = f.z * (results_of.x + results_of.y + results_of.z + results_of.w);
#if STAGED
            results[t * COLS * PARTS + lane] = result;
#else
            if own_column < params.value_dim { out[to] = result; }
#end
#end
        }
#if STAGED
        workgroupBarrier();
        for (var i = lane; i < count * COLS; i += COLS * PARTS) {
            let t = i / COLS;
            let at = first_column + i % COLS;
            var result = 0.0;
            for (var p = 0u; p < PARTS; p++) { result += results[t * COLS * PARTS + p * COLS + i % COLS]; }
            if at < params.value_dim { out[(first + t) * params.out_ld + head * params.value_dim + at] = result; }
        }
#end
    }
#if REMAKE
#else
    if params.carried != 0u && own_column < params.value_dim {
        let at = state_at(0u, head, column) / 4u;
#for i in 0..QUADS
        if quad$i < quads { states[at + quad$i] = s$i; }
#end
    }
#end
}
