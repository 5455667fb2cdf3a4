// y = x W^T (+ product * factor^T) (+ bias) for a few rows on software adapters. Each lane owns one output of all ROWS rows and walks
// its row of the packed weight. All lanes load the values of x at the same addresses.

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let col = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if col >= params.cols { return; }
    // Rows beyond the last one repeat it, and their results are dropped.
#for i in 0..ROWS
    let x$i = min($iu, params.rows - 1u) * params.x_ld4;
    let product$i = min($iu, params.rows - 1u) * params.product_ld4;
    var acc$i = vec4<f32>();
    var sum$i = 0.0;
#end
    let whole = params.in_features / 4u;
    for (var k = 0u; k < whole; k++) {
        let w = weight4(col, k * 4u, params.in_features);
#for i in 0..ROWS
        acc$i += x[x$i + k] * w;
#end
    }
    if whole * 4u < params.in_features {
        // The padding of x holds no values.
        let w = weight4(col, whole * 4u, params.in_features);
        for (var k = whole * 4u; k < params.in_features; k++) {
#for i in 0..ROWS
            sum$i += x[x$i + whole][k % 4u] * w[k % 4u];
#end
        }
    }
    let out = params.first + col;
    for (var j = 0u; j < params.rank; j++) {
        let b = params.scale * factor[out * params.rank + j];
#for i in 0..ROWS
        sum$i += product[product$i + j / 4u][j % 4u] * b;
#end
    }
    var shift = 0.0;
    if BIAS { shift = bias[out]; }
#for i in 0..ROWS
    if $iu < params.rows {
        var value = acc$i.x + acc$i.y + acc$i.z + acc$i.w + sum$i + shift;
        if ACCUMULATE { value += y[$iu * params.y_ld + out]; }
        y[$iu * params.y_ld + out] = value;
    }
#end
}
