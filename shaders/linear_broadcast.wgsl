// y = x B (+ low C) (+ bias) for software adapters whose vectors exchange values: no workgroup memory and no barrier. A load costs
// these adapters far more than arithmetic, so that each is used often: a lane owns 4 * QUADS columns of ROWS rows, reads one of
// eight consecutive values of each row, and hands it round; the weight is decoded on the way in.
// B(k, c) is weight[c, k] in the forward direction and weight[k, c] for the input gradient; the joined part loads a tile of it.
// `low` and C are the LoRA term.

struct Params {
    // The contraction runs from `begin` to `depth`.
    rows: u32, cols: u32, begin: u32, depth: u32, in_features: u32,
    x_ld: u32, x_col: u32, y_ld4: u32, y_col4: u32,
    rank: u32, low_ld: u32, other_first: u32, scale: f32,
    // Flags, not constants: another text would take longer to compile than it saves.
    bias: u32, accumulate: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> low: array<f32>;
@group(0) @binding(6) var<storage, read> other: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

// The weights of one turn: row q of the contraction, quad c of the lane's columns.
struct Tile {
#for q in 0..8
#for c in 0..QUADS
    w$q_$c: vec4<f32>,
#end
#end
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // Lanes beyond the last column repeat it, rows beyond the last row too: every lane takes part in the exchange, and what is not
    // to be stored is dropped.
    let first = group.x * ROWS;
    let col = (group.y * 8u + lane) * 4u * QUADS;
#for i in 0..ROWS
    let row$i = min(first + $iu, params.rows - 1u);
    let x$i = row$i * params.x_ld + params.x_col;
#for c in 0..QUADS
    var acc$i_$c = vec4<f32>();
#end
#end
    for (var k = params.begin; k < params.depth; k += 8u) {
        let tile = weight_tile(k, col);
        let at = min(k + lane, params.depth - 1u);
        let on = k + lane < params.depth;
#for i in 0..ROWS
        let v$i = select(0.0, x[x$i + at], on);
#for q in 0..8
        let v$i_$q = subgroupBroadcast(v$i, $qu);
#for c in 0..QUADS
        acc$i_$c += v$i_$q * tile.w$q_$c;
#end
#end
#end
    }
    for (var j = 0u; j < params.rank; j += 4u) {
        let at = min(j + lane % 4u, params.rank - 1u);
        let on = j + lane % 4u < params.rank;
#for q in 0..4
#for c in 0..QUADS
        let other$q_$c = low_rank4(min(j + $qu, params.rank - 1u), col + $cu * 4u);
#end
#end
#for i in 0..ROWS
        let low$i = select(0.0, params.scale * low[row$i * params.low_ld + at], on);
#for q in 0..4
        let low$i_$q = subgroupBroadcast(low$i, $qu);
#for c in 0..QUADS
        acc$i_$c += low$i_$q * other$q_$c;
#end
#end
#end
    }
#for c in 0..QUADS
    let col$c = col + $cu * 4u;
    var shift$c = vec4<f32>();
    if params.bias != 0u && col$c < params.cols {
        let count = min(4u, params.cols - col$c);
        for (var i = 0u; i < count; i++) { shift$c[i] = bias[params.other_first + col$c + i]; }
    }
#for i in 0..ROWS
    if first + $iu < params.rows && col$c < params.cols {
        let at = row$i * params.y_ld4 + params.y_col4 + col$c / 4u;
        var value = acc$i_$c + shift$c;
        if params.accumulate != 0u { value += y[at]; }
        y[at] = value;
    }
#end
#end
}
