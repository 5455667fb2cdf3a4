// Eight contracted values by 4 * QUADS columns of linear_broadcast, forward: each column is a row of the weight, read along it.

fn weight_tile(k: u32, col: u32, lane: u32, sides: Sides) -> Tile {
    var tile: Tile;
#for c in 0..QUADS
#for j in 0..4
    let octet$c_$j = weight8(min(col + $cu * 4u + $ju, sides.cols - 1u), k, sides.in_features);
#end
#for q in 0..4
    tile.w0$q_$c = vec4(octet$c_0.h0[$q], octet$c_1.h0[$q], octet$c_2.h0[$q], octet$c_3.h0[$q]);
    tile.w1$q_$c = vec4(octet$c_0.h1[$q], octet$c_1.h1[$q], octet$c_2.h1[$q], octet$c_3.h1[$q]);
#end
#end
    return tile;
}

// lora_B is [out, rank].
fn low_rank_tile(j: u32, col: u32, sides: Sides) -> LowRankTile {
    var tile: LowRankTile;
#for c in 0..QUADS
#for i in 0..4
    let row$c_$i = (sides.other_first + min(col + $cu * 4u + $iu, sides.cols - 1u)) * sides.rank + j;
#if WHOLE_RANK
    let values$c_$i = other[row$c_$i / 4u];
#else
    let values$c_$i = vec4(
        other[row$c_$i], other[row$c_$i + min(1u, sides.rank - 1u - j)],
        other[row$c_$i + min(2u, sides.rank - 1u - j)], other[row$c_$i + min(3u, sides.rank - 1u - j)],
    );
#end
#end
#for q in 0..4
    tile.w$q_$c = vec4(values$c_0[$q], values$c_1[$q], values$c_2[$q], values$c_3[$q]);
#end
#end
    return tile;
}
