// y = x B (+ product * C) (+ bias) for software adapters whose lanes exchange values, without workgroup memory and barriers. A load
// costs these adapters far more than arithmetic, and a narrow load about as much as a wide one. Each lane therefore loads four
// consecutive values of a row of its own and hands them to the others. It owns WIDTH * QUADS columns of 8 * GROUPS rows, and decodes
// the weights of its columns on the way in.
// B(k, c) is weight[c, k] in the forward direction and weight[k, c] for the input gradient; the joined part loads a tile of it.
// `product * C` is the LoRA term, where C is the LoRA factor. With NARROW a lane owns half a quad.

struct Params {
    // The contraction runs from `begin` to `depth`.
    rows: u32, cols: u32, begin: u32, depth: u32, in_features: u32,
    x_ld4: u32, x_col4: u32, y_ld4: u32, y_col4: u32,
    rank: u32, product_ld4: u32, factor_first: u32, scale: f32,
    first_col: u32,
    // Flags, not constants: another text would take longer to compile than it saves.
    bias: u32, accumulate: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> factor: array<Factor>;
@group(0) @binding(7) var<storage, read_write> y: array<Out>;

@group(1) @binding(0) var<uniform> params: Params;

// The weights of one turn: row 4 h + q of the contraction, quad c of the lane's columns.
struct Tile {
#for h in 0..OCTET_HALVES
#for q in 0..4
#for c in 0..QUADS
    w$h$q_$c: Cols,
#end
#end
#end
}

// The LoRA factor of one turn, four values of the rank.
struct LowRankTile {
#for q in 0..4
#for c in 0..QUADS
    w$q_$c: Cols,
#end
#end
}

// The parameters that the loops read: within a loop these adapters load a uniform as slowly as any other value.
// The lane is not among them: the number of turns must be the same for every lane, as Chrome's compiler demands around exchanges.
struct Sides { cols: u32, depth: u32, in_features: u32, rank: u32, factor_first: u32, first_col: u32 }

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Lanes beyond the last column repeat it, and so do rows beyond the last row: every lane must take part in the exchange. Their
    // results are not stored.
    let first = group.x * 8u * GROUPS;
    let first_col = params.first_col + group.y * 8u * WIDTH * QUADS;
    let col = first_col + lane * WIDTH * QUADS;
    let sides = Sides(
        params.cols, params.depth, params.in_features, params.rank, params.factor_first, first_col,
    );
    let last_quad = (sides.depth - 1u) / 4u;
#for g in 0..GROUPS
    let own$g = min(first + $gu * 8u + lane, params.rows - 1u);
    let x$g = own$g * params.x_ld4 + params.x_col4;
#for i in 0..8
#for c in 0..QUADS
    var acc$g$i_$c = Cols();
#end
#end
#end
    for (var k = params.begin; k < sides.depth; k += 4u * OCTET_HALVES) {
        let tile = weight_tile(k, col, lane, sides);
#for g in 0..GROUPS
#for h in 0..OCTET_HALVES
        let x$g_$h = mask_tail(x[x$g + min(k / 4u + $hu, last_quad)], k + $hu * 4u, sides.depth);
#end
#for i in 0..8
#for h in 0..OCTET_HALVES
#for q in 0..4
        let x$g_$h_$i_$q = subgroupBroadcast(x$g_$h[$q], $iu);
#for c in 0..QUADS
        acc$g$i_$c += x$g_$h_$i_$q * tile.w$h$q_$c;
#end
#end
#end
#end
#end
    }
#for g in 0..GROUPS
    let product$g = own$g * params.product_ld4;
#end
    let scale = params.scale;
    // Column by column: in the other order a compiler spilled more registers, also in the loop above.
    for (var j = 0u; j < sides.rank; j += 4u) {
        let tile = low_rank_tile(j, col, sides);
#for g in 0..GROUPS
        let products$g = scale * mask_tail(product[product$g + j / 4u], j, sides.rank);
#for i in 0..8
#for q in 0..4
        let product$g$i_$q = subgroupBroadcast(products$g[$q], $iu);
#end
#end
#for c in 0..QUADS
#for i in 0..8
#for q in 0..4
        acc$g$i_$c += product$g$i_$q * tile.w$q_$c;
#end
#end
#end
#end
    }
#for c in 0..QUADS
    let col$c = col + $cu * 4u;
    var shift$c = Cols();
    if params.bias != 0u && col$c < params.cols {
        let count = min(WIDTH, params.cols - col$c);
        for (var i = 0u; i < count; i++) { shift$c[i] = bias[params.factor_first + col$c + i]; }
    }
#for g in 0..GROUPS
#for i in 0..8
    if first + $gu * 8u + $iu < params.rows && col$c < params.cols {
        let row = (first + $gu * 8u + $iu) * params.y_ld4 + params.y_col4;
        var value = acc$g$i_$c + shift$c;
#if NARROW
        // Two lanes share a quad of y.
        let at = 4u * row + col$c;
        if params.accumulate != 0u { value += vec2(y[at], y[at + 1u]); }
        y[at] = value.x;
        y[at + 1u] = value.y;
#else
        let at = row + col$c / 4u;
        if params.accumulate != 0u { value += y[at]; }
        y[at] = value;
#end
    }
#end
#end
#end
}
