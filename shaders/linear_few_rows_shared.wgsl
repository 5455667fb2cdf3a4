// y = x W^T (+ product * factor^T) (+ bias) for a few rows on GPUs. A workgroup computes four outputs of all ROWS rows. Its lanes walk
// along the four rows of the packed weight side by side, so that neighbors read neighboring words, and add up in a fixed order.

// The partial sums of each lane, for the four outputs of each row.
var<workgroup> sums: array<vec4<f32>, WG_SIZE * ROWS>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let first_col = (group.x + group.y * groups.x) * 4u;
    // Columns and rows beyond the last one repeat it, and their results are dropped.
#for c in 0..4
    let col$c = min(first_col + $cu, params.cols - 1u);
    let factor$c = (params.first + col$c) * params.rank;
#end
#for i in 0..ROWS
    let row$i = min($iu, params.rows - 1u);
    var acc$i = vec4<f32>();
#end
    for (var k = lane * 4u; k < params.in_features; k += WG_SIZE * 4u) {
#for c in 0..4
        let w$c = weight4(col$c, k, params.in_features);
#end
#for i in 0..ROWS
        let x$i = mask_tail(x[row$i * params.x_ld4 + k / 4u], k, params.in_features);
        acc$i += vec4(dot(x$i, w0), dot(x$i, w1), dot(x$i, w2), dot(x$i, w3));
#end
    }
    for (var j = lane; j < params.rank; j += WG_SIZE) {
        let b = params.scale * vec4(factor[factor0 + j], factor[factor1 + j], factor[factor2 + j], factor[factor3 + j]);
#for i in 0..ROWS
        acc$i += product[row$i * params.product_ld4 + j / 4u][j % 4u] * b;
#end
    }
#for i in 0..ROWS
    sums[$iu * WG_SIZE + lane] = acc$i;
#end
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if lane < half {
#for i in 0..ROWS
            sums[$iu * WG_SIZE + lane] += sums[$iu * WG_SIZE + lane + half];
#end
        }
        workgroupBarrier();
    }
    // One lane stores one value.
    let row = lane / 4u;
    let col = first_col + lane % 4u;
    if row >= min(ROWS, params.rows) || col >= params.cols { return; }
    var value = sums[row * WG_SIZE][lane % 4u];
    let at = row * params.y_ld + params.first + col;
    if BIAS { value += bias[params.first + col]; }
    if ACCUMULATE { value += y[at]; }
    y[at] = value;
}
