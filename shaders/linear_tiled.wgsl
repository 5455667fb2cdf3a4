// y = sum of x B + product * C (+ bias), ROWS x COLS outputs per workgroup. Operands are staged in workgroup memory, DEPTH contracted
// values at a time. The next codes of a 4-bit weight, and with PREFETCH the next values of x, are fetched into registers meanwhile.
// B(k, c) is weight[c, k] in the forward direction and weight[k, c] for the input gradient; both read the same packed rows.
// `product * C` is the LoRA term, where C is the LoRA factor; further turns of the same loop contract it. Every output is one sum in the
// order of k, so that tiles of all sizes give the same bits. The input gradients of layers that read the same input are one sum of at
// most TERMS such products.

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

// A thread owns OWN_ROWS rows, ROWS_APART apart, by COL_QUADS quads of columns, COLS_APART quads apart: neighboring threads read
// neighboring places of workgroup memory.
const DEPTH_4 = DEPTH / 4u;
const COLS_4 = COLS / 4u;
const COLS_APART = COLS_4 / COL_QUADS;
const ROWS_APART = ROWS / OWN_ROWS;
const WG_SIZE = COLS_APART * ROWS_APART;

// Quads of contracted values, row by row as they lie in x, and for the forward direction as they lie in the weight; rows an odd number
// of quads apart use different banks. For the input gradient w_tile has quads of columns, w_tile[k][col / 4].
const STRIDE = DEPTH_4 + 1u;
var<workgroup> x_tile: array<vec4<f32>, ROWS * STRIDE>;
#if FORWARD
var<workgroup> w_tile: array<vec4<f32>, COLS * STRIDE>;
#else
var<workgroup> w_tile: array<vec4<f32>, DEPTH * COLS_4>;
#end

fn fetch_x(term: Term, element: u32, first_row: u32, first_k: u32) -> vec4<f32> {
    let row = first_row + element / DEPTH_4;
    let at = first_k + element % DEPTH_4 * 4u;
    var quad = vec4<f32>();
    if row < params.rows && at < term.depth {
        quad = x[row * term.x_ld4 + term.x_first4 + at / 4u];
        if at + 4u > term.depth { quad = mask_tail(quad, at, term.depth); }
    }
    return quad;
}

fn store_x(quad: vec4<f32>, element: u32) {
#if X_WHOLE
    x_tile[element / DEPTH_4 * STRIDE + element % DEPTH_4] = quad;
#else
    if element < X_ELEMENTS { x_tile[element / DEPTH_4 * STRIDE + element % DEPTH_4] = quad; }
#end
}

fn load_product(term: Term, element: u32, first_row: u32, first_k: u32) {
    let row = first_row + element / DEPTH_4;
    let at = first_k + element % DEPTH_4 * 4u;
    var quad = vec4<f32>();
    if row < params.rows && at < term.rank {
        quad = term.scale * mask_tail(product[term.product_first4 + row * term.product_ld4 + at / 4u], at, term.rank);
    }
    x_tile[element / DEPTH_4 * STRIDE + element % DEPTH_4] = quad;
}

#if FORWARD
// The quads of a column lie beside those of the columns that other threads read with it.
fn column_at(col: u32) -> u32 {
    return (col % 4u * COLS_4 + col / 4u) * STRIDE;
}
#end

#if SCALED
// Each block scale is decoded once, before the turns that need it.
#if FORWARD
const SCALES = COLS;
#else
const SCALE_COLS = (COLS + QUANT_BLOCK - 1u) / QUANT_BLOCK;
const SCALES = DEPTH * SCALE_COLS;
#end

var<workgroup> scale_tile: array<f32, 2u * SCALES>;

fn load_scales(depth: u32, first_col: u32, first_k: u32, slot: u32, lane: u32) {
    if lane < SCALES {
        var scale = 0.0;
#if FORWARD
        let row = first_col + lane;
        if row < params.cols && first_k < depth { scale = absmax_of((row * params.in_features + first_k) / QUANT_BLOCK); }
#else
        let row = first_k + lane / SCALE_COLS;
        let col = first_col + lane % SCALE_COLS * QUANT_BLOCK;
        if row < depth && col < params.cols { scale = absmax_of((row * params.in_features + col) / QUANT_BLOCK); }
#end
        scale_tile[slot * SCALES + lane] = scale;
    }
}

// Eight codes of a row of the weight. The scale of what lies outside is zero.
fn fetch_w(depth: u32, element: u32, first_col: u32, first_k: u32) -> u32 {
#if FORWARD
    let col = min(first_col + element / (DEPTH / 8u), params.cols - 1u);
    return octet_word(col, min(first_k + element % (DEPTH / 8u) * 8u, depth - 8u), params.in_features);
#else
    let n = min(first_k + element / (COLS / 8u), depth - 1u);
    return octet_word(n, min(first_col + element % (COLS / 8u) * 8u, params.cols - 8u), params.in_features);
#end
}

fn store_w(word: u32, element: u32, slot: u32) {
#if FORWARD
    let col = element / (DEPTH / 8u);
    let scale = scale_tile[slot * SCALES + col];
    let at = column_at(col) + element % (DEPTH / 8u) * 2u;
#else
    let col8 = element % (COLS / 8u);
    let scale = scale_tile[slot * SCALES + element / (COLS / 8u) * SCALE_COLS + col8 / (QUANT_BLOCK / 8u)];
    let at = element * 2u;
#end
    let values = octet_of(word);
    w_tile[at] = values.h0 * scale;
    w_tile[at + 1u] = values.h1 * scale;
}
#else
fn load_w(depth: u32, element: u32, first_col: u32, first_k: u32) {
    var quad = vec4<f32>();
#if FORWARD
    let col = element / DEPTH_4;
    let at = first_k + element % DEPTH_4 * 4u;
    if first_col + col < params.cols && at < depth { quad = weight4(first_col + col, at, params.in_features); }
    w_tile[column_at(col) + element % DEPTH_4] = quad;
#else
    let n = first_k + element / COLS_4;
    let col = first_col + element % COLS_4 * 4u;
    if n < depth && col < params.cols { quad = weight4(n, col, params.in_features); }
    w_tile[element] = quad;
#end
}
#end

// Four values of a LoRA factor from `at` on, zero from the `count`th on.
fn factor_quad(at: u32, count: u32) -> vec4<f32> {
    var quad = vec4<f32>();
#for i in 0..4
    if $iu < count { quad[$i] = factor[at + $iu]; }
#end
    return quad;
}

// lora_B forward, lora_A for the input gradient.
fn load_factor(term: Term, element: u32, first_col: u32, first_k: u32) {
    var quad = vec4<f32>();
#if FORWARD
    let col = element / DEPTH_4;
    let at = first_k + element % DEPTH_4 * 4u;
    if first_col + col < params.cols && at < term.rank {
        quad = factor_quad(term.factor_first + (first_col + col) * term.rank + at, term.rank - at);
    }
    w_tile[column_at(col) + element % DEPTH_4] = quad;
#else
    let n = first_k + element / COLS_4;
    let col = first_col + element % COLS_4 * 4u;
    if n < term.rank && col < params.cols { quad = factor_quad(term.factor_first + n * params.cols + col, params.cols - col); }
    w_tile[element] = quad;
#end
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_col = group.x * COLS;
    let first_row = group.y * ROWS;
    let tx = lane % COLS_APART;
    let ty = lane / COLS_APART;
#for i in 0..OWN_ROWS
#for c in 0..COL_QUADS
    var acc$i_$c = vec4<f32>();
#end
#end
#if SCALED
    fill_code_table(lane);
#end
#if MOVING
    for (var t = 0u; t < params.count; t++) {
        let term = params.terms[t];
        origin = Origin(term.weight_first, term.absmax_first, term.nested_first);
#else
    {
        let term = params.terms[0];
#end
        let base_turns = (term.depth + DEPTH - 1u) / DEPTH;
        let turns = base_turns + (term.rank + DEPTH - 1u) / DEPTH;
#if PREFETCH
#for b in 0..X_PER
        var x_next$b = fetch_x(term, lane + $bu * WG_SIZE, first_row, 0u);
#end
#end
#if SCALED
#for b in 0..W_PER
        var w_next$b = fetch_w(term.depth, lane + $bu * WG_SIZE, first_col, 0u);
#end
        load_scales(term.depth, first_col, 0u, 0u, lane);
        workgroupBarrier();
#end
        for (var turn = 0u; turn < turns; turn++) {
            // Quads of contracted values in this turn.
            var quads = (term.depth - turn * DEPTH + 3u) / 4u;
            if turn < base_turns {
#if PREFETCH
#for b in 0..X_PER
                store_x(x_next$b, lane + $bu * WG_SIZE);
#end
#else
#for b in 0..X_PER
                store_x(fetch_x(term, lane + $bu * WG_SIZE, first_row, turn * DEPTH), lane + $bu * WG_SIZE);
#end
#end
#if SCALED
#if FORWARD
                let slot = turn * DEPTH / QUANT_BLOCK % 2u;
#else
                let slot = turn % 2u;
#end
#for b in 0..W_PER
#if W_WHOLE
                store_w(w_next$b, lane + $bu * WG_SIZE, slot);
#else
                if lane + $bu * WG_SIZE < W_ELEMENTS { store_w(w_next$b, lane + $bu * WG_SIZE, slot); }
#end
#end
#else
                for (var e = lane; e < W_ELEMENTS; e += WG_SIZE) { load_w(term.depth, e, first_col, turn * DEPTH); }
#end
            } else {
                let first_k = (turn - base_turns) * DEPTH;
                quads = (term.rank - first_k + 3u) / 4u;
                for (var e = lane; e < X_ELEMENTS; e += WG_SIZE) { load_product(term, e, first_row, first_k); }
                for (var e = lane; e < COLS * DEPTH_4; e += WG_SIZE) { load_factor(term, e, first_col, first_k); }
            }
            workgroupBarrier();
            let next = turn + 1u;
            if next < base_turns {
#if PREFETCH
#for b in 0..X_PER
                x_next$b = fetch_x(term, lane + $bu * WG_SIZE, first_row, next * DEPTH);
#end
#end
#if SCALED
#for b in 0..W_PER
                w_next$b = fetch_w(term.depth, lane + $bu * WG_SIZE, first_col, next * DEPTH);
#end
#if FORWARD
                if next * DEPTH % QUANT_BLOCK == 0u {
                    load_scales(term.depth, first_col, next * DEPTH, next * DEPTH / QUANT_BLOCK % 2u, lane);
                }
#else
                load_scales(term.depth, first_col, next * DEPTH, next % 2u, lane);
#end
#end
            }
            quads = min(quads, DEPTH_4);
            for (var k = 0u; k < quads; k++) {
#for c in 0..COL_QUADS
#for j in 0..4
#if FORWARD
                let w$j_$c = w_tile[($ju * COLS_4 + $cu * COLS_APART + tx) * STRIDE + k];
#else
                let w$j_$c = w_tile[(k * 4u + $ju) * COLS_4 + $cu * COLS_APART + tx];
#end
#end
#end
#for i in 0..OWN_ROWS
                let x$i = x_tile[(ty + $iu * ROWS_APART) * STRIDE + k];
#for c in 0..COL_QUADS
#if FORWARD
                acc$i_$c += x$i.x * vec4(w0_$c.x, w1_$c.x, w2_$c.x, w3_$c.x);
                acc$i_$c += x$i.y * vec4(w0_$c.y, w1_$c.y, w2_$c.y, w3_$c.y);
                acc$i_$c += x$i.z * vec4(w0_$c.z, w1_$c.z, w2_$c.z, w3_$c.z);
                acc$i_$c += x$i.w * vec4(w0_$c.w, w1_$c.w, w2_$c.w, w3_$c.w);
#else
                acc$i_$c += x$i.x * w0_$c;
                acc$i_$c += x$i.y * w1_$c;
                acc$i_$c += x$i.z * w2_$c;
                acc$i_$c += x$i.w * w3_$c;
#end
#end
#end
            }
            workgroupBarrier();
        }
    }
#for c in 0..COL_QUADS
    let col$c = first_col + ($cu * COLS_APART + tx) * 4u;
    if col$c < params.cols {
        var shift = vec4<f32>();
        if params.bias != 0u {
            let count = min(4u, params.cols - col$c);
            for (var i = 0u; i < count; i++) { shift[i] = bias[params.bias_first + col$c + i]; }
        }
#for i in 0..OWN_ROWS
        let row$i = first_row + ty + $iu * ROWS_APART;
        if row$i < params.rows {
            let at = row$i * params.y_ld4 + params.y_col4 + col$c / 4u;
            var value = acc$i_$c + shift;
            if params.accumulate != 0u { value += y[at]; }
            y[at] = value;
        }
#end
    }
#end
}
