// Attention's key and value gradients: a workgroup owns 32 keys of one key head and walks the queries of the group's heads in
// tiles of 32, so that nothing is summed across workgroups. The even sides take the scores and then sum dv, the odd ones take
// the products of v and dout and then sum dk: each thread keeps one sum.

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> scratch: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dv: array<vec4<f32>>;

// Columns of each operand that a side contracts at a time, and those in workgroup memory.
const SPAN: u32 = 16u;
const COLUMNS: u32 = HALF * SPAN;
// Quads of the results' columns between two that a thread owns, and all of each result that the workgroup owns.
const ACROSS: u32 = 8u * HALF;
const QUADS: u32 = CHUNKS * ACROSS;

// In turn: k, v, q and dout, columns outermost; two sides' parts of the products; the weights of dv, those of dk, KEYS rows of dout and
// as many of q.
const ROWS_AT: u32 = 16u * TILE;
var<workgroup> tile: array<vec4<f32>, max(32u * COLUMNS, ROWS_AT + 2u * KEYS * QUADS)>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let heads_per_key = params.heads / params.kv_heads;
    let tiles = (params.keys + TILE - 1u) / TILE;
    let number = (group.x + group.y * groups.x) / PARTS;
    let part = (group.x + group.y * groups.x) % PARTS * QUADS;
    let kv_head = number / tiles;
    if kv_head >= params.kv_heads { return; }
    let first = (number % tiles) * TILE;
    let last = min(first + TILE, params.keys) - 1u;
    var queries = vec2(0xffffffffu, 0u);
    for (var key = first; key <= last; key++) {
        queries = joined(queries, query_range(key));
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
    // A thread's first quad of the columns that it sums.
    let quad = side / 2u * 8u + tc;
#for i in 0..4
#for c in 0..CHUNKS
    var sum$i_$c = vec4(0.0);
#end
#end
    for (var head = kv_head * heads_per_key; head < (kv_head + 1u) * heads_per_key; head++) {
        for (var base = queries.x; base < queries.y; base += TILE) {
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
#for i in 0..4
                        a$i = k[min(first + 4u * load_row + $iu, last) * params.k_ld + kv_head * D4 + c];
#end
                    } else if operand == 1u {
#for i in 0..4
                        a$i = v[min(first + 4u * load_row + $iu, last) * params.v_ld + kv_head * D4 + c];
#end
                    } else if operand == 2u {
#for i in 0..4
                        a$i = q[min(base + 4u * load_row + $iu, queries.y - 1u) * params.q_ld + head * D4 + c];
#end
                    } else {
#for i in 0..4
                        a$i = dout[min(base + 4u * load_row + $iu, queries.y - 1u) * params.dout_ld + head * D4 + c];
#end
                    }
                }
                store_turned((operand * COLUMNS + load_col * 4u) * 8u + load_row, a0, a1, a2, a3);
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
            let own_keys = vec4(first + 4u * tr) + vec4(0u, 1u, 2u, 3u);
#for i in 0..4
            let range$i = query_range(min(own_keys[$i], last));
#end
            let from_row = vec4(range0.x, range1.x, range2.x, range3.x);
            let to_row = vec4(range0.y, range1.y, range2.y, range3.y);
#for j in 0..SHARE
            let other$j = 4u * tc + side * SHARE + $ju;
            let query$j = min(base + other$j, queries.y - 1u);
            let keys$j = key_range(query$j);
            let terms$j = row_terms(query$j, head);
            let seen$j = (own_keys >= vec4(keys$j.x)) & (own_keys < vec4(keys$j.y));
            let on$j = within(base + other$j, from_row, to_row) & seen$j;
#if CAP
            let bounded$j = capped_all(score$j * params.score_scale);
            let p$j = select(vec4(0.0), exp2(bounded$j - terms$j.x), on$j);
            dp$j = terms$j.y + cap_slopes(bounded$j) * (dp$j - terms$j.y);
#else
            let p$j = select(vec4(0.0), exp2(score$j * params.score_scale - terms$j.x), on$j);
#end
            tile[other$j * 8u + tr] = p$j;
            // The weight of a query's only key is 1 whatever its score, unless a sink takes a part of it.
            let several$j = keys$j.y > keys$j.x + 1u || SINKS;
            tile[(TILE + other$j) * 8u + tr] = select(vec4(0.0), p$j * (dp$j - terms$j.y), several$j);
#end
            for (var step = 0u; step < TILE; step += KEYS) {
                // The first rows lie beside what other threads may still read.
                if step > 0u { workgroupBarrier(); }
                for (var e = lane; e < KEYS * QUADS; e += WG_SIZE) {
                    let row = min(base + step + e / QUADS, queries.y - 1u);
                    let c = head * D4 + min(part + e % QUADS, D4 - 1u);
                    tile[ROWS_AT + e] = dout[row * params.dout_ld + c];
                    tile[ROWS_AT + KEYS * QUADS + e] = q[row * params.q_ld + c];
                }
                workgroupBarrier();
                for (var row = 0u; row < KEYS; row += 2u) {
#for u in 0..2
                    let w$u = tile[(side % 2u * TILE + step + row + $uu) * 8u + tr];
#for c in 0..CHUNKS
                    let b$u_$c = tile[ROWS_AT + (side % 2u * KEYS + row + $uu) * QUADS + $cu * ACROSS + quad];
#for i in 0..4
                    sum$i_$c += w$u[$i] * b$u_$c;
#end
#end
#end
                }
            }
        }
    }
#for i in 0..4
    if first + 4u * tr + $iu <= last {
        let key = first + 4u * tr + $iu;
#for c in 0..CHUNKS
        let column$c = part + quad + $cu * ACROSS;
        if column$c < D4 {
            if side % 2u == 0u {
                dv[key * params.dv_ld + kv_head * D4 + column$c] = sum$i_$c;
            } else {
                dk[key * params.dk_ld + kv_head * D4 + column$c] = sum$i_$c * params.scale;
            }
        }
#end
    }
#end
}
