// y = x B + low C (+ bias), 64 x 64 outputs per workgroup, 8 x 4 per invocation, operands staged in workgroup memory.
// B(k, c) is weight[c, k] in the forward direction and weight[k, c] for the input gradient; both read the same packed rows.
// `low` and C are the LoRA term, contracted by further turns of the same loop.

struct Params {
    rows: u32, cols: u32, depth: u32, in_features: u32,
    x_ld4: u32, x_col4: u32, y_ld4: u32, y_col4: u32,
    rank: u32, low_ld4: u32, other_first: u32, scale: f32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> low: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> other: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

const BM = 64u;
const BN = 64u;
const BK = 16u;
const WG_SIZE = 128u;

// Both tiles lie with the contracted index outermost: x_tile[k][row / 4], w_tile[k][col / 4].
var<workgroup> x_tile: array<vec4<f32>, 256>;
var<workgroup> w_tile: array<vec4<f32>, 256>;

fn keep(value: vec4<f32>, at: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), value, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}

fn store_x(quad: u32, value: vec4<f32>) {
    let row = quad / 4u;
    let k = (quad % 4u) * 4u;
    x_tile[(k + 0u) * 16u + row / 4u][row % 4u] = value.x;
    x_tile[(k + 1u) * 16u + row / 4u][row % 4u] = value.y;
    x_tile[(k + 2u) * 16u + row / 4u][row % 4u] = value.z;
    x_tile[(k + 3u) * 16u + row / 4u][row % 4u] = value.w;
}

fn store_w_transposed(quad: u32, value: vec4<f32>) {
    let col = quad / 4u;
    let k = (quad % 4u) * 4u;
    w_tile[(k + 0u) * 16u + col / 4u][col % 4u] = value.x;
    w_tile[(k + 1u) * 16u + col / 4u][col % 4u] = value.y;
    w_tile[(k + 2u) * 16u + col / 4u][col % 4u] = value.z;
    w_tile[(k + 3u) * 16u + col / 4u][col % 4u] = value.w;
}

fn load_base(first_row: u32, first_col: u32, first_k: u32, lane: u32) {
    for (var quad = lane; quad < 256u; quad += WG_SIZE) {
        let row = first_row + quad / 4u;
        let k = first_k + (quad % 4u) * 4u;
        var value = vec4<f32>();
        if row < params.rows && k < params.depth {
            value = keep(x[row * params.x_ld4 + params.x_col4 + k / 4u], k, params.depth);
        }
        store_x(quad, value);
        if FORWARD {
            let col = first_col + quad / 4u;
            var w = vec4<f32>();
            if col < params.cols && k < params.depth { w = weight4(col, k, params.in_features); }
            store_w_transposed(quad, w);
        } else {
            let n = first_k + quad / 16u;
            let col = first_col + (quad % 16u) * 4u;
            var w = vec4<f32>();
            if n < params.depth && col < params.cols { w = weight4(n, col, params.in_features); }
            w_tile[quad] = w;
        }
    }
}

fn load_low_rank(first_row: u32, first_col: u32, first_k: u32, lane: u32) {
    for (var quad = lane; quad < 256u; quad += WG_SIZE) {
        let row = first_row + quad / 4u;
        let k = first_k + (quad % 4u) * 4u;
        var value = vec4<f32>();
        if row < params.rows && k < params.rank {
            value = params.scale * keep(low[row * params.low_ld4 + k / 4u], k, params.rank);
        }
        store_x(quad, value);
        var w = vec4<f32>();
        if FORWARD {
            let col = first_col + quad / 4u;
            if col < params.cols {
                let base = (params.other_first + col) * params.rank + k;
                let count = min(4u, max(params.rank, k) - k);
                for (var i = 0u; i < count; i++) { w[i] = other[base + i]; }
            }
            store_w_transposed(quad, w);
        } else {
            let n = first_k + quad / 16u;
            let col = first_col + (quad % 16u) * 4u;
            if n < params.rank {
                let count = min(4u, max(params.cols, col) - col);
                for (var i = 0u; i < count; i++) { w[i] = other[n * params.cols + col + i]; }
            }
            w_tile[quad] = w;
        }
    }
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_col = group.x * BN;
    let first_row = group.y * BM;
    let tx = lane % 16u;
    let ty = lane / 16u;
#for i in 0..8
    var acc$i = vec4<f32>();
#end
    let base_tiles = (params.depth + BK - 1u) / BK;
    let tiles = base_tiles + (params.rank + BK - 1u) / BK;
    for (var tile = 0u; tile < tiles; tile++) {
        if tile < base_tiles {
            load_base(first_row, first_col, tile * BK, lane);
        } else {
            load_low_rank(first_row, first_col, (tile - base_tiles) * BK, lane);
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k++) {
            let w = w_tile[k * 16u + tx];
            let a = x_tile[k * 16u + ty * 2u];
            let b = x_tile[k * 16u + ty * 2u + 1u];
            acc0 += a.x * w;
            acc1 += a.y * w;
            acc2 += a.z * w;
            acc3 += a.w * w;
            acc4 += b.x * w;
            acc5 += b.y * w;
            acc6 += b.z * w;
            acc7 += b.w * w;
        }
        workgroupBarrier();
    }
    let col = first_col + tx * 4u;
    if col >= params.cols { return; }
    var shift = vec4<f32>();
    if BIAS {
        let count = min(4u, params.cols - col);
        for (var i = 0u; i < count; i++) { shift[i] = bias[params.other_first + col + i]; }
    }
    let first = first_row + ty * 8u;
#for i in 0..8
    if first + $iu < params.rows {
        let at = (first + $iu) * params.y_ld4 + params.y_col4 + col / 4u;
        var value = acc$i + shift;
        if ACCUMULATE { value += y[at]; }
        y[at] = value;
    }
#end
}
