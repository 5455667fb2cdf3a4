// Eight contracted values by 4 * QUADS columns of linear_broadcast, forward: each column is a row of the weight, read along it.

fn weight_tile(k: u32, col: u32) -> Tile {
    var tile: Tile;
#for c in 0..QUADS
#for j in 0..4
    let octet$c_$j = weight8(min(col + $cu * 4u + $ju, params.cols - 1u), k, params.in_features);
#end
    tile.w0_$c = vec4(octet$c_0.h0.x, octet$c_1.h0.x, octet$c_2.h0.x, octet$c_3.h0.x);
    tile.w1_$c = vec4(octet$c_0.h0.y, octet$c_1.h0.y, octet$c_2.h0.y, octet$c_3.h0.y);
    tile.w2_$c = vec4(octet$c_0.h0.z, octet$c_1.h0.z, octet$c_2.h0.z, octet$c_3.h0.z);
    tile.w3_$c = vec4(octet$c_0.h0.w, octet$c_1.h0.w, octet$c_2.h0.w, octet$c_3.h0.w);
    tile.w4_$c = vec4(octet$c_0.h1.x, octet$c_1.h1.x, octet$c_2.h1.x, octet$c_3.h1.x);
    tile.w5_$c = vec4(octet$c_0.h1.y, octet$c_1.h1.y, octet$c_2.h1.y, octet$c_3.h1.y);
    tile.w6_$c = vec4(octet$c_0.h1.z, octet$c_1.h1.z, octet$c_2.h1.z, octet$c_3.h1.z);
    tile.w7_$c = vec4(octet$c_0.h1.w, octet$c_1.h1.w, octet$c_2.h1.w, octet$c_3.h1.w);
#end
    return tile;
}

// lora_B is [out, rank].
fn low_rank4(j: u32, col: u32) -> vec4<f32> {
    var value: vec4<f32>;
#for i in 0..4
    value[$i] = other[(params.other_first + min(col + $iu, params.cols - 1u)) * params.rank + j];
#end
    return value;
}
