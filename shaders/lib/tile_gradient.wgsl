// Four contracted values by WIDTH * QUADS columns of linear_broadcast, input gradient: four rows of the weight, read across.

// A lane's own columns, from `at` on, in the quad that has them.
fn own_columns(quad: vec4<f32>, at: u32) -> Cols {
#if NARROW
    return select(quad.xy, quad.zw, at % 4u >= 2u);
#else
    return quad;
#end
}

fn weight_tile(k: u32, col: u32, lane: u32, sides: Sides) -> Tile {
    var tile: Tile;
    let at = min(col, sides.cols - WIDTH * QUADS);
#if SCALED
    // The columns of a workgroup lie in two blocks of a row at most: each lane loads one of the scales and hands it to the others.
    let last_col = min(sides.first_col + 8u * WIDTH * QUADS, sides.cols) - 1u;
    let own = min(k + lane % 4u, sides.depth - 1u) * sides.in_features;
    let scales = scale(own + select(sides.first_col, last_col, lane >= 4u));
#end
#for q in 0..4
    let index$q = min(k + $qu, sides.depth - 1u) * sides.in_features;
#if SCALED
    let in_left$q = (index$q + at) / QUANT_BLOCK == (index$q + sides.first_col) / QUANT_BLOCK;
    let scale$q = select(subgroupBroadcast(scales, 4u + $qu), subgroupBroadcast(scales, $qu), in_left$q);
#end
#if PAIRS
    let packed$q = packed(index$q + at);
#else
#for c in 0..QUADS
    let packed$q_$c = packed(index$q + at + $cu * 4u);
#end
#end
#end
#for q in 0..4
#for c in 0..QUADS
#if PAIRS
    let quad$q_$c = quad(packed$q, $cu * 4u);
#else
    let quad$q_$c = quad(packed$q_$c, at + $cu * 4u);
#end
#if SCALED
    tile.w0$q_$c = scale$q * own_columns(quad$q_$c, at);
#else
    tile.w0$q_$c = own_columns(quad$q_$c, at);
#end
#end
#end
    return tile;
}

// lora_A is [rank, in].
fn low_rank_tile(j: u32, col: u32, sides: Sides) -> LowRankTile {
    var tile: LowRankTile;
#for q in 0..4
#for c in 0..QUADS
    let at$q_$c = min(j + $qu, sides.rank - 1u) * sides.cols + min(col + $cu * 4u, sides.cols - WIDTH);
    tile.w$q_$c = own_columns(factor[at$q_$c / 4u], at$q_$c);
#end
#end
    return tile;
}
