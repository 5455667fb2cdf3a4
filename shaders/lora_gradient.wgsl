// Partial sums of left^T right over a range of rows: the gradient of a LoRA factor, [rank, cols], before it is summed over ranges.
// Each invocation owns four columns of 4 * QUADS ranks; a range of rows is one split. With BROADCAST each of eight lanes loads the
// left side of one of eight rows and hands it to the others.

struct Params { rows: u32, cols: u32, rank: u32, left_ld4: u32, right_ld4: u32, rows_per_split: u32 }

@group(0) @binding(0) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> right: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let cols4 = (params.cols + 3u) / 4u;
    let col4 = group.x * WG_SIZE + lane;
    let first_rank = group.y * 4u * QUADS;
    let begin = group.z * params.rows_per_split;
    let end = min(begin + params.rows_per_split, params.rows);
    // Within a loop software adapters load a uniform as slowly as any other value.
    let left_ld4 = params.left_ld4;
    let right_ld4 = params.right_ld4;
    // Lanes beyond the last column repeat it, since every lane must take part in an exchange.
    let at4 = min(col4, cols4 - 1u);
#for q in 0..QUADS
    let left$q = min(first_rank / 4u + $qu, left_ld4 - 1u);
#for i in 0..4
    var acc$q_$i = vec4<f32>();
#end
#end
#if BROADCAST
    // Eight rows to one accumulator after another: each is fetched and kept once for all of them.
    for (var row = begin; row < end; row += 8u) {
        let own = min(row + lane, end - 1u);
        let on = row + lane < end;
#for r in 0..8
        let right$r = right[min(row + $ru, end - 1u) * right_ld4 + at4];
#end
#for q in 0..QUADS
        let a$q = select(vec4<f32>(), left[own * left_ld4 + left$q], on);
#for i in 0..4
#for r in 0..8
        acc$q_$i += subgroupBroadcast(a$q[$i], $ru) * right$r;
#end
#end
#end
    }
#else
    for (var row = begin; row < end; row++) {
        let r = right[row * right_ld4 + at4];
#for q in 0..QUADS
        let a$q = left[row * left_ld4 + left$q];
#for i in 0..4
        acc$q_$i += a$q[$i] * r;
#end
#end
    }
#end
    if col4 >= cols4 { return; }
#for q in 0..QUADS
#for i in 0..4
    if first_rank + $qu * 4u + $iu < params.rank {
        partials[(group.z * params.rank + first_rank + $qu * 4u + $iu) * cols4 + col4] = acc$q_$i;
    }
#end
#end
}
