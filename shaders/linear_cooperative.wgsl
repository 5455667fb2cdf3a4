// y = sum of x B + product * C (+ bias) by matrices that a subgroup multiplies as a whole. B(k, c) is weight[c, k] in the forward
// direction and weight[k, c] for the input gradient. `product * C` is the LoRA term, where C is the LoRA factor; further turns of the
// same loop contract it. linear_rows_f16 has scaled x and the product. The weight and C are scaled on the way in, and the sums are
// scaled back at the end. The input gradients of layers that read the same input are one sum of at most TERMS such products.
//
// A workgroup computes TILE_ROWS x TILE_COLS outputs in UNITS units, OWNED of them per subgroup. A unit is HIGH x WIDE matrices.
// Matrices of one index lie side by side over the units. The result depends neither on the lanes that form a subgroup nor on the count
// of subgroups in a workgroup: where subgroups vary in size, some own more units than others.

struct Term {
    depth: u32, first_quad: u32, rank: u32, factor_first: u32,
    weight_first: u32, absmax_first: u32, nested_first: u32, padding: u32,
}

struct Params {
    rows: u32, cols: u32, in_features: u32, row_quads: u32,
    y_ld4: u32, y_col4: u32, bias_first: u32, bias: u32, accumulate: u32,
    count: u32,
    @align(16) terms: array<Term, TERMS>,
}

@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> factor: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

const K_QUADS = DEPTH / 4u;

fn stage_x(first_row: u32, first_quad: u32, quads: u32, lane: u32) {
    for (var i = lane; i < TILE_ROWS * K_QUADS; i += WG_SIZE) {
        let row = first_row + i / K_QUADS;
        let quad = first_quad + i % K_QUADS;
        var value = vec4<Half>();
        if row < params.rows && quad < quads { value = x_quad(row * params.row_quads + quad); }
        let at = (i / K_QUADS) * X_STRIDE + (i % K_QUADS) * 4u;
        x_tile[at] = value.x;
        x_tile[at + 1u] = value.y;
        x_tile[at + 2u] = value.z;
        x_tile[at + 3u] = value.w;
    }
}

fn stage_w(at: u32, value: vec4<f32>) {
    let half = to_f16(value);
    w_tile[at] = half.x;
    w_tile[at + 1u] = half.y;
    w_tile[at + 2u] = half.z;
    w_tile[at + 3u] = half.w;
}

fn stage_weight(depth: u32, first_col: u32, first_k: u32, power_of_weight: f32, lane: u32) {
#if FORWARD
    for (var i = lane; i < TILE_COLS * K_QUADS; i += WG_SIZE) {
        let col = first_col + i / K_QUADS;
        let k = first_k + (i % K_QUADS) * 4u;
        var value = vec4<f32>();
        if col < params.cols && k < depth { value = weight4(col, k, params.in_features); }
        stage_w((i / K_QUADS) * W_STRIDE + (i % K_QUADS) * 4u, value * power_of_weight);
    }
#else
    for (var i = lane; i < DEPTH * TILE_COLS / 4u; i += WG_SIZE) {
        let n = first_k + i / (TILE_COLS / 4u);
        let col = first_col + (i % (TILE_COLS / 4u)) * 4u;
        var value = vec4<f32>();
        if n < depth && col < params.cols { value = weight4(n, col, params.in_features); }
        stage_w((i / (TILE_COLS / 4u)) * W_STRIDE + (i % (TILE_COLS / 4u)) * 4u, value * power_of_weight);
    }
#end
}

fn stage_factor(term: Term, first_col: u32, first_k: u32, power_of_factor: f32, lane: u32) {
#if FORWARD
    for (var i = lane; i < TILE_COLS * K_QUADS; i += WG_SIZE) {
        let col = first_col + i / K_QUADS;
        let k = first_k + (i % K_QUADS) * 4u;
        var value = vec4<f32>();
        if col < params.cols {
            let base = term.factor_first + col * term.rank + k;
            let count = min(4u, max(term.rank, k) - k);
            for (var j = 0u; j < count; j++) { value[j] = factor[base + j]; }
        }
        stage_w((i / K_QUADS) * W_STRIDE + (i % K_QUADS) * 4u, value * power_of_factor);
    }
#else
    for (var i = lane; i < DEPTH * TILE_COLS / 4u; i += WG_SIZE) {
        let n = first_k + i / (TILE_COLS / 4u);
        let col = first_col + (i % (TILE_COLS / 4u)) * 4u;
        var value = vec4<f32>();
        if n < term.rank {
            let count = min(4u, max(params.cols, col) - col);
            for (var j = 0u; j < count; j++) { value[j] = factor[term.factor_first + n * params.cols + col + j]; }
        }
        stage_w((i / (TILE_COLS / 4u)) * W_STRIDE + (i % (TILE_COLS / 4u)) * 4u, value * power_of_factor);
    }
#end
}

// Writes UNIT_ROWS x UNIT_COLS matrices of finished sums, which lie in `block`.
fn finish(first_row: u32, first_col: u32, lane: u32) {
    for (var i = lane; i < BLOCK / 4u; i += WG_SIZE) {
        let row = first_row + i / (BLOCK_STRIDE / 4u);
        let col = first_col + (i % (BLOCK_STRIDE / 4u)) * 4u;
        if row < params.rows && col < params.cols {
            let sum = vec4<f32>(block[i * 4u], block[i * 4u + 1u], block[i * 4u + 2u], block[i * 4u + 3u]);
            var value = scaled(sum, i32(f32(x_quad(row * params.row_quads).x)));
            if params.bias != 0u {
                let count = min(4u, params.cols - col);
                for (var j = 0u; j < count; j++) { value[j] += bias[params.bias_first + col + j]; }
            }
            let at = row * params.y_ld4 + params.y_col4 + col / 4u;
            if params.accumulate != 0u { value += y[at]; }
            y[at] = value;
        }
    }
}

fn contract(group: vec3<u32>, lane: u32, subgroup: u32, subgroups: u32) {
    let first_row = group.y * TILE_ROWS;
    let first_col = group.x * TILE_COLS;
#if VARYING
    if lane == 0u { block[0] = f32(subgroups); }
    let step = u32(workgroupUniformLoad(&block[0]));
#else
    let step = UNITS;
#end
    for (var i = lane; i < BLOCK; i += WG_SIZE) { block[i] = 0.0; }
    workgroupBarrier();
#for o in 0..OWNED
    let unit$o = min(subgroup + $ou * step, UNITS - 1u);
    let row$o = (unit$o / UNIT_COLS) * SIDE;
    let col$o = (unit$o % UNIT_COLS) * SIDE;
#for i in 0..HIGH
#for j in 0..WIDE
    var sum$o_$i_$j = zero_c();
#end
#end
#end
    for (var t = 0u; t < params.count; t++) {
        let term = params.terms[t];
#if MOVING
        origin = Origin(term.weight_first, term.absmax_first, term.nested_first);
#end
        let header = x_quad(t);
        let power_of_weight = power(i32(f32(header.y)));
        let power_of_factor = power(i32(f32(header.z)));
        let first_product = term.first_quad + (term.depth + 3u) / 4u;
        let base_turns = (term.depth + DEPTH - 1u) / DEPTH;
        let turns = base_turns + (term.rank + DEPTH - 1u) / DEPTH;
        for (var turn = 0u; turn < turns; turn++) {
            if turn < base_turns {
                stage_x(first_row, term.first_quad + turn * K_QUADS, first_product, lane);
                stage_weight(term.depth, first_col, turn * DEPTH, power_of_weight, lane);
            } else {
                let first_k = (turn - base_turns) * DEPTH;
                stage_x(first_row, first_product + first_k / 4u, first_product + (term.rank + 3u) / 4u, lane);
                stage_factor(term, first_col, first_k, power_of_factor, lane);
            }
            workgroupBarrier();
            for (var k = 0u; k < DEPTH; k += SIDE) {
#for o in 0..OWNED
                if $ou * step < UNITS {
#for i in 0..HIGH
                    let a$i = load_a((row$o + $iu * UNIT_ROWS * SIDE) * X_STRIDE + k);
#end
#for j in 0..WIDE
#if FORWARD
                    let b$j = load_b((col$o + $ju * UNIT_COLS * SIDE) * W_STRIDE + k);
#else
                    let b$j = load_b(k * W_STRIDE + col$o + $ju * UNIT_COLS * SIDE);
#end
#for i in 0..HIGH
                    sum$o_$i_$j = multiply_add(a$i, b$j, sum$o_$i_$j);
#end
#end
                }
#end
            }
            workgroupBarrier();
        }
    }
#for i in 0..HIGH
#for j in 0..WIDE
#for o in 0..OWNED
    if $ou * step < UNITS { store_c(sum$o_$i_$j, row$o * BLOCK_STRIDE + col$o); }
#end
    workgroupBarrier();
    finish(first_row + $iu * UNIT_ROWS * SIDE, first_col + $ju * UNIT_COLS * SIDE, lane);
    workgroupBarrier();
#end
#end
}
