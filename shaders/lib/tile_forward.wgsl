// 4 * OCTET_HALVES contracted values by WIDTH * QUADS columns of linear_broadcast, forward: each column is a row of the weight, read
// along it.

fn weight_tile(k: u32, col: u32, lane: u32, sides: Sides) -> Tile {
    var tile: Tile;
#for c in 0..QUADS
#for j in 0..WIDTH
    let index$c_$j = min(col + $cu * 4u + $ju, sides.cols - 1u) * sides.in_features + k;
    let packed$c_$j = packed(index$c_$j);
#if SCALED
    let scale$c_$j = scale(index$c_$j);
#end
#end
#end
#for h in 0..OCTET_HALVES
#for c in 0..QUADS
#for j in 0..WIDTH
#if OCTETS
    let values$c_$j$h = quad(packed$c_$j, $hu * 4u);
#else
    let values$c_$j$h = quad(packed$c_$j, k);
#end
#if SCALED
    let quad$c_$j$h = values$c_$j$h * scale$c_$j;
#else
    let quad$c_$j$h = values$c_$j$h;
#end
#end
#for q in 0..4
#if NARROW
    tile.w$h$q_$c = vec2(quad$c_0$h[$q], quad$c_1$h[$q]);
#else
    tile.w$h$q_$c = vec4(quad$c_0$h[$q], quad$c_1$h[$q], quad$c_2$h[$q], quad$c_3$h[$q]);
#end
#end
#end
#end
    return tile;
}

// lora_B is [out, rank].
fn low_rank_tile(j: u32, col: u32, sides: Sides) -> LowRankTile {
    var tile: LowRankTile;
#for c in 0..QUADS
#for i in 0..WIDTH
    let row$c_$i = (sides.factor_first + min(col + $cu * 4u + $iu, sides.cols - 1u)) * sides.rank + j;
#if WHOLE_RANK
    let values$c_$i = factor[row$c_$i / 4u];
#else
    let values$c_$i = vec4(
        factor[row$c_$i], factor[row$c_$i + min(1u, sides.rank - 1u - j)],
        factor[row$c_$i + min(2u, sides.rank - 1u - j)], factor[row$c_$i + min(3u, sides.rank - 1u - j)],
    );
#end
#end
#for q in 0..4
#if NARROW
    tile.w$q_$c = vec2(values$c_0[$q], values$c_1[$q]);
#else
    tile.w$q_$c = vec4(values$c_0[$q], values$c_1[$q], values$c_2[$q], values$c_3[$q]);
#end
#end
#end
    return tile;
}
