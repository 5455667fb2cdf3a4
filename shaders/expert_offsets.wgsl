// The second step of sorting pairs by expert, in one workgroup: the first slot of each part of each expert, in the place of the counts,
// and the expert of each tile of slots. An expert begins at a tile of its own; slots that it leaves free have no pair.

struct Params { experts: u32, tiles: u32 }

@group(0) @binding(0) var<storage, read_write> counts: array<u32>;
@group(0) @binding(1) var<storage, read_write> tile_experts: array<u32>;
@group(0) @binding(2) var<storage, read_write> pairs: array<u32>;

@group(1) @binding(0) var<uniform> params: Params;

// The tiles of each expert, then the first of them.
var<workgroup> tiles: array<u32, MAX_EXPERTS>;
var<workgroup> used: u32;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var e = lane; e < params.experts; e += WG_SIZE) {
        var total = 0u;
        for (var i = 0u; i < PARTS; i++) { total += counts[e * PARTS + i]; }
        tiles[e] = (total + ROWS - 1u) / ROWS;
    }
    workgroupBarrier();
    if lane == 0u {
        var first = 0u;
        for (var e = 0u; e < params.experts; e++) {
            let count = tiles[e];
            tiles[e] = first;
            first += count;
        }
        used = first;
    }
    workgroupBarrier();
    for (var e = lane; e < params.experts; e += WG_SIZE) {
        let first = tiles[e];
        var end = used;
        if e + 1u < params.experts { end = tiles[e + 1u]; }
        var slot = first * ROWS;
        for (var i = 0u; i < PARTS; i++) {
            let count = counts[e * PARTS + i];
            counts[e * PARTS + i] = slot;
            slot += count;
        }
        for (; slot < end * ROWS; slot++) { pairs[slot] = NONE; }
        for (var tile = first; tile < end; tile++) { tile_experts[tile] = e; }
    }
    for (var tile = used + lane; tile < params.tiles; tile += WG_SIZE) { tile_experts[tile] = NONE; }
}
