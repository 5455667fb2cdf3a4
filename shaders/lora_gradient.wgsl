// Partial sums of left^T right over a range of rows: the gradient of a LoRA factor, [rank, cols], before it is summed over ranges.
// Each invocation owns four columns of eight ranks; a range of rows is one split.

struct Params { rows: u32, cols: u32, rank: u32, left_ld4: u32, right_ld4: u32, rows_per_split: u32 }

@group(0) @binding(0) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> right: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let cols4 = (params.cols + 3u) / 4u;
    let col4 = group.x * WG_SIZE + lane;
    if col4 >= cols4 { return; }
    let first_rank = group.y * 8u;
    let left_col = first_rank / 4u;
    let second = min(left_col + 1u, params.left_ld4 - 1u);
    let begin = group.z * params.rows_per_split;
    let end = min(begin + params.rows_per_split, params.rows);
#for i in 0..8
    var acc$i = vec4<f32>();
#end
    for (var row = begin; row < end; row++) {
        let r = right[row * params.right_ld4 + col4];
        let a = left[row * params.left_ld4 + left_col];
        let b = left[row * params.left_ld4 + second];
        acc0 += a.x * r;
        acc1 += a.y * r;
        acc2 += a.z * r;
        acc3 += a.w * r;
        acc4 += b.x * r;
        acc5 += b.y * r;
        acc6 += b.z * r;
        acc7 += b.w * r;
    }
#for i in 0..8
    if first_rank + $iu < params.rank {
        partials[(group.z * params.rank + first_rank + $iu) * cols4 + col4] = acc$i;
    }
#end
}
