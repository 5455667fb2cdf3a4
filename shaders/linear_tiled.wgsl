// y = sum of x B + product * C (+ bias), ROWS x COLS outputs per workgroup. Operands are staged in workgroup memory, DEPTH contracted
// values at a time. B(k, c) is weight[c, k] in the forward direction and weight[k, c] for the input gradient; both read the same packed
// rows. `product * C` is the LoRA term, where C is the LoRA factor; further turns of the same loop contract it. Every output is one sum
// in the order of k, so that tiles of all sizes give the same bits. The input gradients of layers that read the same input are one sum
// of at most TERMS such products.

struct Term {
    depth: u32, x_first4: u32, x_ld4: u32,
    rank: u32, product_first4: u32, product_ld4: u32, factor_first: u32, scale: f32,
    weight_first: u32, absmax_first: u32, nested_first: u32, padding: u32,
}

struct Params {
    rows: u32, cols: u32, in_features: u32, y_ld4: u32, y_col4: u32, bias_first: u32, bias: u32, accumulate: u32,
    count: u32,
    @align(16) terms: array<Term, TERMS>,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> factor: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

// An invocation owns ROW_QUADS quads of neighboring rows by COL_QUADS quads of columns, which are COLS_AT quads apart, so that
// neighboring invocations read neighboring quads of workgroup memory.
const ROWS_4 = ROWS / 4u;
const COLS_4 = COLS / 4u;
const DEPTH_4 = DEPTH / 4u;
const COLS_AT = COLS_4 / COL_QUADS;
const WG_SIZE = COLS_AT * (ROWS_4 / ROW_QUADS);

// Both tiles lie with the contracted index outermost: x_tile[k][row / 4], w_tile[k][col / 4].
var<workgroup> x_tile: array<vec4<f32>, DEPTH * ROWS_4>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * COLS_4>;

// Operands are loaded in blocks of 4 rows by 4 contracted values and transposed in registers. Eight neighboring lanes (or all) hold
// neighboring quads of rows, so that their stores use different banks of workgroup memory. The next lanes go on along the rows.
const X_FAST = min(8u, ROWS_4);
const W_FAST = min(8u, COLS_4);
const X_BLOCKS = ROWS_4 * DEPTH_4;

fn store_x(row4: u32, k: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    x_tile[(k + 0u) * ROWS_4 + row4] = vec4(v0.x, v1.x, v2.x, v3.x);
    x_tile[(k + 1u) * ROWS_4 + row4] = vec4(v0.y, v1.y, v2.y, v3.y);
    x_tile[(k + 2u) * ROWS_4 + row4] = vec4(v0.z, v1.z, v2.z, v3.z);
    x_tile[(k + 3u) * ROWS_4 + row4] = vec4(v0.w, v1.w, v2.w, v3.w);
}

fn store_w_turned(col4: u32, k: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    w_tile[(k + 0u) * COLS_4 + col4] = vec4(v0.x, v1.x, v2.x, v3.x);
    w_tile[(k + 1u) * COLS_4 + col4] = vec4(v0.y, v1.y, v2.y, v3.y);
    w_tile[(k + 2u) * COLS_4 + col4] = vec4(v0.z, v1.z, v2.z, v3.z);
    w_tile[(k + 3u) * COLS_4 + col4] = vec4(v0.w, v1.w, v2.w, v3.w);
}

fn load_x(term: Term, block: u32, first_row: u32, first_k: u32) {
    let row4 = block % X_FAST + block / (X_FAST * DEPTH_4) * X_FAST;
    let k = block / X_FAST % DEPTH_4 * 4u;
    let row = first_row + row4 * 4u;
    let at = first_k + k;
    let quad = term.x_first4 + at / 4u;
#for i in 0..4
    var v$i = vec4<f32>();
    if row + $iu < params.rows && at < term.depth { v$i = mask_tail(x[(row + $iu) * term.x_ld4 + quad], at, term.depth); }
#end
    store_x(row4, k, v0, v1, v2, v3);
}

fn load_product(term: Term, block: u32, first_row: u32, first_k: u32) {
    let row4 = block % X_FAST + block / (X_FAST * DEPTH_4) * X_FAST;
    let k = block / X_FAST % DEPTH_4 * 4u;
    let row = first_row + row4 * 4u;
    let at = first_k + k;
#for i in 0..4
    var v$i = vec4<f32>();
    if row + $iu < params.rows && at < term.rank {
        v$i = term.scale * mask_tail(product[term.product_first4 + (row + $iu) * term.product_ld4 + at / 4u], at, term.rank);
    }
#end
    store_x(row4, k, v0, v1, v2, v3);
}

#if SCALED
// Each block scale of a 4-bit tile is decoded once, for the next turn while this one is loaded.
#if FORWARD
const W_BLOCKS = COLS_4 * (DEPTH / 8u);
const SCALES = COLS;
#else
const W_BLOCKS = COLS / 8u * DEPTH;
const SCALE_COLS = (COLS + QUANT_BLOCK - 1u) / QUANT_BLOCK;
const SCALES = DEPTH * SCALE_COLS;
#end

var<workgroup> scale_tile: array<f32, 2u * SCALES>;

fn load_scales(depth: u32, first_col: u32, first_k: u32, slot: u32, lane: u32) {
    for (var i = lane; i < SCALES; i += WG_SIZE) {
        var scale = 0.0;
#if FORWARD
        let row = first_col + i;
        if row < params.cols && first_k < depth { scale = absmax_of((row * params.in_features + first_k) / QUANT_BLOCK); }
#else
        let row = first_k + i / SCALE_COLS;
        let col = first_col + i % SCALE_COLS * QUANT_BLOCK;
        if row < depth && col < params.cols { scale = absmax_of((row * params.in_features + col) / QUANT_BLOCK); }
#end
        scale_tile[slot * SCALES + i] = scale;
    }
}

fn load_w(depth: u32, block: u32, first_col: u32, first_k: u32, slot: u32) {
#if FORWARD
    let col4 = block % W_FAST + block / (W_FAST * (DEPTH / 8u)) * W_FAST;
    let k = block / W_FAST % (DEPTH / 8u) * 8u;
    let col = first_col + col4 * 4u;
    let at = slot * SCALES + col4 * 4u;
#for i in 0..4
    var w$i = Octet();
    if col + $iu < params.cols && first_k + k < depth {
        w$i = octet(col + $iu, first_k + k, params.in_features);
        w$i = Octet(w$i.h0 * scale_tile[at + $iu], w$i.h1 * scale_tile[at + $iu]);
    }
#end
    store_w_turned(col4, k, w0.h0, w1.h0, w2.h0, w3.h0);
    store_w_turned(col4, k + 4u, w0.h1, w1.h1, w2.h1, w3.h1);
#else
    let k = block / (COLS / 8u);
    let col8 = block % (COLS / 8u);
    let n = first_k + k;
    let col = first_col + col8 * 8u;
    var w = Octet();
    if n < depth && col < params.cols {
        let scale = scale_tile[slot * SCALES + k * SCALE_COLS + col8 / (QUANT_BLOCK / 8u)];
        w = octet(n, col, params.in_features);
        w = Octet(w.h0 * scale, w.h1 * scale);
    }
    w_tile[k * COLS_4 + col8 * 2u] = w.h0;
    w_tile[k * COLS_4 + col8 * 2u + 1u] = w.h1;
#end
}
#else
#if FORWARD
const W_BLOCKS = COLS_4 * DEPTH_4;
#else
const W_BLOCKS = COLS_4 * DEPTH;
#end

fn load_w(depth: u32, block: u32, first_col: u32, first_k: u32, slot: u32) {
#if FORWARD
    let col4 = block % W_FAST + block / (W_FAST * DEPTH_4) * W_FAST;
    let k = block / W_FAST % DEPTH_4 * 4u;
    let col = first_col + col4 * 4u;
    let at = first_k + k;
#for i in 0..4
    var w$i = vec4<f32>();
    if col + $iu < params.cols && at < depth { w$i = weight4(col + $iu, at, params.in_features); }
#end
    store_w_turned(col4, k, w0, w1, w2, w3);
#else
    let n = first_k + block / COLS_4;
    let col = first_col + block % COLS_4 * 4u;
    var w = vec4<f32>();
    if n < depth && col < params.cols { w = weight4(n, col, params.in_features); }
    w_tile[block] = w;
#end
}
#end

#if FORWARD
const FACTOR_BLOCKS = COLS_4 * DEPTH_4;

fn lora_b(term: Term, col: u32, at: u32) -> vec4<f32> {
    var w = vec4<f32>();
    if col < params.cols {
        let base = term.factor_first + col * term.rank + at;
        let count = min(4u, max(term.rank, at) - at);
        for (var i = 0u; i < count; i++) { w[i] = factor[base + i]; }
    }
    return w;
}

fn load_factor(term: Term, block: u32, first_col: u32, first_k: u32) {
    let col4 = block % W_FAST + block / (W_FAST * DEPTH_4) * W_FAST;
    let k = block / W_FAST % DEPTH_4 * 4u;
    let col = first_col + col4 * 4u;
    let at = first_k + k;
    store_w_turned(col4, k, lora_b(term, col, at), lora_b(term, col + 1u, at), lora_b(term, col + 2u, at), lora_b(term, col + 3u, at));
}
#else
const FACTOR_BLOCKS = COLS_4 * DEPTH;

// Of lora_A.
fn load_factor(term: Term, block: u32, first_col: u32, first_k: u32) {
    let n = first_k + block / COLS_4;
    let col = first_col + block % COLS_4 * 4u;
    var w = vec4<f32>();
    if n < term.rank {
        let count = min(4u, max(params.cols, col) - col);
        for (var i = 0u; i < count; i++) { w[i] = factor[term.factor_first + n * params.cols + col + i]; }
    }
    w_tile[block] = w;
}
#end

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_col = group.x * COLS;
    let first_row = group.y * ROWS;
    let tx = lane % COLS_AT;
    let ty = lane / COLS_AT;
#for q in 0..ROW_QUADS
#for i in 0..4
#for c in 0..COL_QUADS
    var acc$q_$i_$c = vec4<f32>();
#end
#end
#end
#if SCALED
    fill_code_table(lane);
#end
    for (var t = 0u; t < params.count; t++) {
        let term = params.terms[t];
#if MOVING
        origin = Origin(term.weight_first, term.absmax_first, term.nested_first);
#end
#if SCALED
        load_scales(term.depth, first_col, 0u, 0u, lane);
        workgroupBarrier();
#end
        let base_turns = (term.depth + DEPTH - 1u) / DEPTH;
        let turns = base_turns + (term.rank + DEPTH - 1u) / DEPTH;
        for (var turn = 0u; turn < turns; turn++) {
            if turn < base_turns {
                let slot = turn % 2u;
                for (var block = lane; block < X_BLOCKS + W_BLOCKS; block += WG_SIZE) {
                    if block < X_BLOCKS {
                        load_x(term, block, first_row, turn * DEPTH);
                    } else {
                        load_w(term.depth, block - X_BLOCKS, first_col, turn * DEPTH, slot);
                    }
                }
#if SCALED
                load_scales(term.depth, first_col, (turn + 1u) * DEPTH, 1u - slot, lane);
#end
            } else {
                let first_k = (turn - base_turns) * DEPTH;
                for (var block = lane; block < X_BLOCKS; block += WG_SIZE) { load_product(term, block, first_row, first_k); }
                for (var block = lane; block < FACTOR_BLOCKS; block += WG_SIZE) { load_factor(term, block, first_col, first_k); }
            }
            workgroupBarrier();
            for (var k = 0u; k < DEPTH; k++) {
#for c in 0..COL_QUADS
                let w$c = w_tile[k * COLS_4 + $cu * COLS_AT + tx];
#end
#for q in 0..ROW_QUADS
                let x$q = x_tile[k * ROWS_4 + ty * ROW_QUADS + $qu];
#for c in 0..COL_QUADS
                acc$q_0_$c += x$q.x * w$c;
                acc$q_1_$c += x$q.y * w$c;
                acc$q_2_$c += x$q.z * w$c;
                acc$q_3_$c += x$q.w * w$c;
#end
#end
            }
            workgroupBarrier();
        }
    }
    let first = first_row + ty * ROW_QUADS * 4u;
#for c in 0..COL_QUADS
    let col$c = first_col + ($cu * COLS_AT + tx) * 4u;
    if col$c < params.cols {
        var shift = vec4<f32>();
        if params.bias != 0u {
            let count = min(4u, params.cols - col$c);
            for (var i = 0u; i < count; i++) { shift[i] = bias[params.bias_first + col$c + i]; }
        }
#for q in 0..ROW_QUADS
#for i in 0..4
        if first + $qu * 4u + $iu < params.rows {
            let at = (first + $qu * 4u + $iu) * params.y_ld4 + params.y_col4 + col$c / 4u;
            var value = acc$q_$i_$c + shift;
            if params.accumulate != 0u { value += y[at]; }
            y[at] = value;
        }
#end
#end
    }
#end
}
