// Eight contracted values by 4 * QUADS columns of linear_broadcast, input gradient: eight rows of the weight, read across.

fn weight_tile(k: u32, col: u32, lane: u32, sides: Sides) -> Tile {
    var tile: Tile;
    let at = min(col, sides.cols - 4u * QUADS);
#if SCALED
    // The columns of a workgroup lie in two blocks of a row at most: each lane loads the scales of one row, and hands them round.
    let own = min(k + lane, sides.depth - 1u) * sides.in_features;
    let scale_left = absmax[(own + sides.first_col) / 64u];
    let scale_right = absmax[(own + min(sides.first_col + 32u * QUADS, sides.cols) - 1u) / 64u];
#end
#for h in 0..2
#for q in 0..4
    let row$h$q = min(k + $hu * 4u + $qu, sides.depth - 1u);
#if SCALED
    let index$h$q = row$h$q * sides.in_features;
    let in_left$h$q = (index$h$q + at) / 64u == (index$h$q + sides.first_col) / 64u;
    let scale$h$q = select(
        subgroupBroadcast(scale_right, $hu * 4u + $qu), subgroupBroadcast(scale_left, $hu * 4u + $qu), in_left$h$q,
    );
    let octet$h$q = decode8(weight[(index$h$q + at) / 8u], scale$h$q);
#else
#if PAIRS
    let octet$h$q = weight8(row$h$q, at, sides.in_features);
#end
#end
#if PAIRS
    tile.w$h$q_0 = octet$h$q.h0;
    tile.w$h$q_1 = octet$h$q.h1;
#else
    tile.w$h$q_0 = weight4(row$h$q, at, sides.in_features);
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
    tile.w$q_$c = other[(min(j + $qu, sides.rank - 1u) * sides.cols + min(col + $cu * 4u, sides.cols - 4u)) / 4u];
#end
#end
    return tile;
}
