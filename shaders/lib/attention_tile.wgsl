// Tiles of the attention kernels: 32 own rows against 32 other rows. Threads stand in SIDES sides of 8 x 8. Thread (side, tr, tc) owns
// the four rows from 4 * tr on. For the scores it takes the four other rows from 4 * tc on and its side's part of the head's columns,
// then the sides add up their parts and each finishes SHARE of the four. What a wider head adds is threads, not values in a thread:
// the kernels stay within 128 registers. Of still wider heads each of PARTS workgroups sums a part of the columns.

const TILE: u32 = 32u;
const SIDE: u32 = 64u;
const WG_SIZE: u32 = SIDE * SIDES;

// Stores a block of four rows by four columns with the columns outermost.
fn store_turned(at: u32, v0: vec4<f32>, v1: vec4<f32>, v2: vec4<f32>, v3: vec4<f32>) {
    tile[at] = vec4(v0.x, v1.x, v2.x, v3.x);
    tile[at + 8u] = vec4(v0.y, v1.y, v2.y, v3.y);
    tile[at + 16u] = vec4(v0.z, v1.z, v2.z, v3.z);
    tile[at + 24u] = vec4(v0.w, v1.w, v2.w, v3.w);
}

// True for each of a thread's four rows whose range holds `other`.
fn within(other: u32, from_row: vec4<u32>, to_row: vec4<u32>) -> vec4<bool> {
    return (vec4(other) >= from_row) & (vec4(other) < to_row);
}
