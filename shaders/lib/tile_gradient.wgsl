// Eight contracted values by 4 * QUADS columns of linear_broadcast, input gradient: eight rows of the weight, read across.

fn weights_across(row: u32, col: u32) -> Octet {
    if QUADS == 2u { return weight8(row, col, params.in_features); }
    return Octet(weight4(row, col, params.in_features), vec4<f32>());
}

fn weight_tile(k: u32, col: u32) -> Tile {
    var tile: Tile;
    let at = min(col, params.cols - 4u * QUADS);
#for q in 0..8
    let row$q = weights_across(min(k + $qu, params.depth - 1u), at);
#for c in 0..QUADS
    tile.w$q_$c = row$q.h$c;
#end
#end
    return tile;
}

// lora_A is [rank, in].
fn low_rank4(j: u32, col: u32) -> vec4<f32> {
    var value: vec4<f32>;
    let at = j * params.cols + min(col, params.cols - 4u);
#for i in 0..4
    value[$i] = other[at + $iu];
#end
    return value;
}
