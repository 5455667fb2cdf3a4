// Attention forward: a workgroup owns 32 items and walks the keys in tiles of 32. The softmax is rescaled on the way.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> key_ranges: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;

// Columns of q and k in workgroup memory at a time.
const COLUMNS: u32 = 32u;
const SPAN: u32 = COLUMNS / SIDES;
// Quads of the result's columns between two that a thread owns, and all that the workgroup owns.
const ACROSS: u32 = 8u * SIDES;
const QUADS: u32 = CHUNKS * ACROSS;

// In turn: q and k, columns outermost; two sides' parts of the scores; each thread's highest score or its part of a row's total; the
// weights and KEYS rows of v.
const K_AT: u32 = 8u * COLUMNS;
const V_AT: u32 = 8u * TILE;
var<workgroup> tile: array<vec4<f32>, max(16u * COLUMNS, V_AT + KEYS * QUADS)>;
// Of each four items: the beginnings of their q, and their key ranges.
var<workgroup> q_places: array<vec4<u32>, 8>;
var<workgroup> from_rows: array<vec4<u32>, 8>;
var<workgroup> to_rows: array<vec4<u32>, 8>;

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
        keys = joined(keys, key_ranges[params.first_row + row]);
    }
    if lane < 8u {
        var places = vec4<u32>();
        var from_row = vec4<u32>();
        var to_row = vec4<u32>();
#for i in 0..4
        let item$i = min(first + 4u * lane + $iu, last);
        let row$i = params.first_row + item$i / heads_per_key;
        places[$i] = row$i * params.q_ld + (kv_head * heads_per_key + item$i % heads_per_key) * D4;
        from_row[$i] = key_ranges[row$i].x;
        to_row[$i] = key_ranges[row$i].y;
#end
        q_places[lane] = places;
        from_rows[lane] = from_row;
        to_rows[lane] = to_row;
    }

    let side = lane / SIDE;
    let tr = lane / 8u % 8u;
    let tc = lane % 8u;
    // The block of four rows by four columns that a thread loads.
    let load_row = lane % 8u;
    let load_col = lane / 8u % (COLUMNS / 4u);
#for i in 0..4
#for c in 0..CHUNKS
    var o$i_$c = vec4(0.0);
#end
#end
    var highest = vec4(LOWEST);
    var total = vec4(0.0);
    for (var base = keys.x; base < keys.y; base += TILE) {
#for j in 0..4
        var s$j = vec4(0.0);
#end
        for (var column = 0u; column < D4; column += COLUMNS / 4u) {
            let c = column + load_col;
            workgroupBarrier();
            if lane < 2u * COLUMNS {
                let places = q_places[load_row];
#for i in 0..4
                var a$i = vec4(0.0);
                if c < D4 { a$i = q[places[$i] + c]; }
#end
                store_turned(load_col * 32u + load_row, a0, a1, a2, a3);
            }
            if lane >= WG_SIZE - 2u * COLUMNS {
#for i in 0..4
                var b$i = vec4(0.0);
                if c < D4 { b$i = k[min(base + 4u * load_row + $iu, keys.y - 1u) * params.k_ld + kv_head * D4 + c]; }
#end
                store_turned(K_AT + load_col * 32u + load_row, b0, b1, b2, b3);
            }
            workgroupBarrier();
            for (var d = side * SPAN; d < (side + 1u) * SPAN; d += 2u) {
#for u in 0..2
                let a$u = tile[(d + $uu) * 8u + tr];
                let b$u = tile[K_AT + (d + $uu) * 8u + tc];
#for j in 0..4
                s$j += a$u * b$u[$j];
#end
#end
            }
        }
#for j in 0..SHARE
        var t$j = vec4(0.0);
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
        t$j += tile[((side * SHARE + $ju) * 8u + tc) * 8u + tr];
        t$j += tile[((4u + side * SHARE + $ju) * 8u + tc) * 8u + tr];
#end
#end
        workgroupBarrier();
        let from_row = from_rows[tr];
        let to_row = to_rows[tr];
        var here = vec4(LOWEST);
#for j in 0..SHARE
        let on$j = within(base + 4u * tc + side * SHARE + $ju, from_row, to_row);
#if CAP
        t$j = select(vec4(LOWEST), capped_all(t$j * params.score_scale), on$j);
#else
        t$j = select(vec4(LOWEST), t$j * params.score_scale, on$j);
#end
        here = max(here, t$j);
#end
        tile[tr * ACROSS + side * 8u + tc] = here;
        workgroupBarrier();
        let before = highest;
        for (var e = 0u; e < ACROSS; e++) { highest = max(highest, tile[tr * ACROSS + e]); }
        workgroupBarrier();
        let keep = exp2(before - highest);
        total *= keep;
#for j in 0..SHARE
        let p$j = select(vec4(0.0), exp2(t$j - highest), on$j);
        total += p$j;
        tile[(4u * tc + side * SHARE + $ju) * 8u + tr] = p$j;
#end
#for i in 0..4
#for c in 0..CHUNKS
        o$i_$c *= keep[$i];
#end
#end
        for (var step = 0u; step < TILE; step += KEYS) {
            // The first rows lie beside what other threads may still read.
            if step > 0u { workgroupBarrier(); }
            for (var e = lane; e < KEYS * QUADS; e += WG_SIZE) {
                let key = min(base + step + e / QUADS, keys.y - 1u);
                tile[V_AT + e] = v[key * params.v_ld + kv_head * D4 + min(part + e % QUADS, D4 - 1u)];
            }
            workgroupBarrier();
            for (var key = 0u; key < KEYS; key += 2u) {
#for u in 0..2
                let w$u = tile[(step + key + $uu) * 8u + tr];
#for c in 0..CHUNKS
                let b$u_$c = tile[V_AT + (key + $uu) * QUADS + $cu * ACROSS + side * 8u + tc];
#for i in 0..4
                o$i_$c += w$u[$i] * b$u_$c;
#end
#end
#end
            }
        }
    }
    workgroupBarrier();
    tile[tr * ACROSS + side * 8u + tc] = total;
    workgroupBarrier();
    total = vec4(0.0);
    for (var e = 0u; e < ACROSS; e++) { total += tile[tr * ACROSS + e]; }
    let share = select(vec4(0.0), 1.0 / total, total > vec4(0.0));
#for i in 0..4
    if first + 4u * tr + $iu <= last {
        let item = first + 4u * tr + $iu;
        let row = params.first_row + item / heads_per_key;
        let head = kv_head * heads_per_key + item % heads_per_key;
        let column = part + side * 8u + tc;
#for c in 0..CHUNKS
        if column + $cu * ACROSS < D4 { out[row * params.out_ld + head * D4 + column + $cu * ACROSS] = o$i_$c * share[$i]; }
#end
        if column == 0u {
            let value = (highest[$i] + log2(total[$i])) * LN_2;
            lse[head * params.rows + row - params.first_row] = select(LOWEST, value, total[$i] > 0.0);
        }
    }
#end
}
