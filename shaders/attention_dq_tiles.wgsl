// Attention's query gradient: a workgroup owns 32 items and walks the keys in tiles of 32. The even sides take the scores, the
// odd ones the products of dout and v.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dq: array<vec4<f32>>;

// Columns of each operand in workgroup memory at a time, and those of them that a side contracts.
const COLUMNS: u32 = 8u + 8u * HALF;
const SPAN: u32 = COLUMNS / HALF;
// Quads of the result's columns between two that a thread owns, and all that the workgroup owns.
const ACROSS: u32 = 8u * SIDES;
const QUADS: u32 = CHUNKS * ACROSS;

// In turn: q, dout, k and v, columns outermost; two sides' parts of the products; the weights and KEYS rows of k.
const K_AT: u32 = 8u * TILE;
var<workgroup> tile: array<vec4<f32>, max(32u * COLUMNS, K_AT + KEYS * QUADS)>;
// Of each four items: the beginnings of their q and dout, their key ranges, and their terms of the backward's scratch.
var<workgroup> q_places: array<vec4<u32>, 8>;
var<workgroup> dout_places: array<vec4<u32>, 8>;
var<workgroup> from_rows: array<vec4<u32>, 8>;
var<workgroup> to_rows: array<vec4<u32>, 8>;
var<workgroup> row_lse: array<vec4<f32>, 8>;
var<workgroup> deltas: array<vec4<f32>, 8>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let items = params.rows * heads_per_key;
    let tiles = (items + TILE - 1u) / TILE;
    let number = (group.x + group.y * groups.x) / PARTS;
    let part = (group.x + group.y * groups.x) % PARTS * QUADS;
    let kv_head = number / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (number % tiles) * TILE;
    let last = min(first + TILE, items) - 1u;
    var keys = vec2(0xffffffffu, 0u);
    for (var row = first / heads_per_key; row <= last / heads_per_key; row++) {
        keys = joined(keys, key_range(row));
    }
    if lane < 8u {
        var places_q = vec4<u32>();
        var places_dout = vec4<u32>();
        var from_row = vec4<u32>();
        var to_row = vec4<u32>();
        var lse = vec4<f32>();
        var delta = vec4<f32>();
#for i in 0..4
        let item$i = min(first + 4u * lane + $iu, last);
        let row$i = item$i / heads_per_key;
        let head$i = kv_head * heads_per_key + item$i % heads_per_key;
        places_q[$i] = row$i * params.q_ld + head$i * D4;
        places_dout[$i] = row$i * params.dout_ld + head$i * D4;
        from_row[$i] = key_range(row$i).x;
        to_row[$i] = key_range(row$i).y;
        lse[$i] = row_terms(row$i, head$i).x;
        delta[$i] = row_terms(row$i, head$i).y;
#end
        q_places[lane] = places_q;
        dout_places[lane] = places_dout;
        from_rows[lane] = from_row;
        to_rows[lane] = to_row;
        row_lse[lane] = lse;
        deltas[lane] = delta;
    }

    let side = lane / SIDE;
    let tr = lane / 8u % 8u;
    let tc = lane % 8u;
    // The operand of which a thread loads a block of four rows by four columns.
    let operand = lane / (2u * COLUMNS);
    let load_row = lane % 8u;
    let load_col = lane / 8u % (COLUMNS / 4u);
    // The beginning of a side's columns in its two operands.
    let span_at = side % 2u * COLUMNS + side / 2u * SPAN;
    let own_at = span_at * 8u + tr;
    let other_at = (2u * COLUMNS + span_at) * 8u + tc;
#for i in 0..4
#for c in 0..CHUNKS
    var sum$i_$c = vec4(0.0);
#end
#end
    for (var base = keys.x; base < keys.y; base += TILE) {
#for j in 0..4
        var s$j = vec4(0.0);
#end
        for (var column = 0u; column < D4; column += COLUMNS / 4u) {
            let c = column + load_col;
            workgroupBarrier();
#for i in 0..4
            var a$i = vec4(0.0);
#end
            if c < D4 {
                if operand == 0u {
                    let places = q_places[load_row];
#for i in 0..4
                    a$i = q[places[$i] + c];
#end
                } else if operand == 1u {
                    let places = dout_places[load_row];
#for i in 0..4
                    a$i = dout[places[$i] + c];
#end
                } else if operand == 2u {
#for i in 0..4
                    a$i = k[min(base + 4u * load_row + $iu, keys.y - 1u) * params.k_ld + kv_head * D4 + c];
#end
                } else if operand == 3u {
#for i in 0..4
                    a$i = v[min(base + 4u * load_row + $iu, keys.y - 1u) * params.v_ld + kv_head * D4 + c];
#end
                }
            }
            if operand < 4u { store_turned((operand * COLUMNS + load_col * 4u) * 8u + load_row, a0, a1, a2, a3); }
            workgroupBarrier();
            for (var d = 0u; d < 8u * SPAN; d += 16u) {
#for u in 0..2
                let a$u = tile[own_at + d + 8u * $uu];
                let b$u = tile[other_at + d + 8u * $uu];
#for j in 0..4
                s$j += a$u * b$u[$j];
#end
#end
            }
        }
#for j in 0..SHARE
        var score$j = vec4(0.0);
        var dp$j = vec4(0.0);
#end
#for h in 0..HALF
        workgroupBarrier();
        if side / 2u == $hu {
#for j in 0..4
            tile[((side % 2u * 4u + $ju) * 8u + tc) * 8u + tr] = s$j;
#end
        }
        workgroupBarrier();
#for j in 0..SHARE
        score$j += tile[((side * SHARE + $ju) * 8u + tc) * 8u + tr];
        dp$j += tile[((4u + side * SHARE + $ju) * 8u + tc) * 8u + tr];
#end
#end
        workgroupBarrier();
        let from_row = from_rows[tr];
        let to_row = to_rows[tr];
        let lse = row_lse[tr];
        let delta = deltas[tr];
        // The weight of a row's only key is 1 whatever its score: without this, the gradient would be what two sums differ by. A sink
        // takes a part of it.
        let several = (to_row > from_row + vec4(1u)) | vec4<bool>(SINKS);
#for j in 0..SHARE
        let other$j = 4u * tc + side * SHARE + $ju;
        let on$j = within(base + other$j, from_row, to_row) & several;
#if CAP
        let bounded$j = capped_all(score$j * params.score_scale);
        let p$j = select(vec4(0.0), exp2(bounded$j - lse) * cap_slopes(bounded$j), on$j);
#else
        let p$j = select(vec4(0.0), exp2(score$j * params.score_scale - lse), on$j);
#end
        tile[other$j * 8u + tr] = p$j * (dp$j - delta);
#end
        for (var step = 0u; step < TILE; step += KEYS) {
            // The first rows lie beside what other threads may still read.
            if step > 0u { workgroupBarrier(); }
            for (var e = lane; e < KEYS * QUADS; e += WG_SIZE) {
                let key = min(base + step + e / QUADS, keys.y - 1u);
                tile[K_AT + e] = k[key * params.k_ld + kv_head * D4 + min(part + e % QUADS, D4 - 1u)];
            }
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key += 2u) {
#for u in 0..2
                let w$u = tile[(step + key + $uu) * 8u + tr];
#for c in 0..CHUNKS
                let b$u_$c = tile[K_AT + (key + $uu) * QUADS + $cu * ACROSS + side * 8u + tc];
#for i in 0..4
                sum$i_$c += w$u[$i] * b$u_$c;
#end
#end
#end
            }
        }
    }
#for i in 0..4
    if first + 4u * tr + $iu <= last {
        let item = first + 4u * tr + $iu;
        let head = kv_head * heads_per_key + item % heads_per_key;
        let column = part + side * 8u + tc;
#for c in 0..CHUNKS
        if column + $cu * ACROSS < D4 {
            dq[item / heads_per_key * params.dq_ld + head * D4 + column + $cu * ACROSS] = sum$i_$c * params.scale;
        }
#end
    }
#end
}
