// The product of each slot with the weight of its expert: y = x W^T, or y = x W for the gradient of an input. Each lane owns one column
// of y, or four for the gradient, in all ROWS slots of a tile, which have one expert. With GATHER a slot reads the row of its pair.
// Software adapters and GPUs take the same text: no workgroup memory, and a weight is decoded once for all slots of a tile.

struct Params {
    tiles: u32, strips: u32, cols: u32, depth: u32, in_features: u32,
    x_ld4: u32, y_ld: u32, top: u32,
    // The column of the whole product that is the first of y.
    first_col: u32,
    // The experts in the bindings, and the words from one to the next.
    first: u32, experts: u32, weight: u32, absmax: u32, nested: u32,
    // The columns of all of the product.
    outputs: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> tile_experts: array<u32>;
@group(0) @binding(5) var<storage, read> pairs: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<Out>;
@group(0) @binding(7) var<storage, read> bias: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * groups.x;
    let tile = index / params.strips;
    let col = (index % params.strips * WG_SIZE + lane) * WIDTH;
    if tile >= params.tiles || col >= params.cols { return; }
    // A tile without an expert wraps around, too.
    let expert = tile_experts[tile] - params.first;
    if expert >= params.experts { return; }
    origin = Origin(expert * params.weight, expert * params.absmax, expert * params.nested);
    let in_features = params.in_features;
    let depth = params.depth;
    let first = tile * ROWS;
    // A slot without a pair takes some row, and its result is dropped.
#for i in 0..ROWS
    let pair$i = pairs[first + $iu];
#if GATHER
    let x$i = select(pair$i / params.top, 0u, pair$i == NONE) * params.x_ld4;
#else
    let x$i = (first + $iu) * params.x_ld4;
#end
    var acc$i = vec4<f32>();
#end
#if FORWARD
    for (var k = 0u; k < depth; k += 4u) {
        let w = weight4(params.first_col + col, k, in_features);
#for i in 0..ROWS
        acc$i += mask_tail(x[x$i + k / 4u], k, depth) * w;
#end
    }
#if BIASED
    let offset = bias[tile_experts[tile] * params.outputs + params.first_col + col];
#for i in 0..ROWS
    if pair$i != NONE { y[(first + $iu) * params.y_ld + col] = acc$i.x + acc$i.y + acc$i.z + acc$i.w + offset; }
#end
#else
#for i in 0..ROWS
    if pair$i != NONE { y[(first + $iu) * params.y_ld + col] = acc$i.x + acc$i.y + acc$i.z + acc$i.w; }
#end
#end
#else
    let last = depth - 1u;
    let at = params.first_col + col;
    for (var k = 0u; k < depth; k += 4u) {
        let w0 = weight4(k, at, in_features);
        let w1 = weight4(min(k + 1u, last), at, in_features);
        let w2 = weight4(min(k + 2u, last), at, in_features);
        let w3 = weight4(min(k + 3u, last), at, in_features);
#for i in 0..ROWS
        let v$i = mask_tail(x[x$i + k / 4u], k, depth);
        acc$i += v$i.x * w0 + v$i.y * w1 + v$i.z * w2 + v$i.w * w3;
#end
    }
#for i in 0..ROWS
    if pair$i != NONE {
        let quad = ((first + $iu) * params.y_ld + col) / 4u;
        var value = acc$i;
        if ACCUMULATE { value += y[quad]; }
        y[quad] = value;
    }
#end
#end
}
