// A tile of 4 rows and 4 columns of a head's state, a column of the matrix for each of its columns.

fn load_state(chunk: u32, head: u32, column_quad: u32, quad: u32) -> mat4x4<f32> {
    var tile: mat4x4<f32>;
    if quad < params.key_dim / 4u {
#for j in 0..4
        tile[$j] = states[state_at(chunk, head, 4u * column_quad + $ju) / 4u + quad];
#end
    }
    return tile;
}

fn store_state(chunk: u32, head: u32, column_quad: u32, quad: u32, tile: mat4x4<f32>) {
    if quad < params.key_dim / 4u {
#for j in 0..4
        states[state_at(chunk, head, 4u * column_quad + $ju) / 4u + quad] = tile[$j];
#end
    }
}
