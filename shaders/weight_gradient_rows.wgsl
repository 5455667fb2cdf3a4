// gradient += left^T right for software adapters: each lane owns four columns of 16 outputs, without workgroup memory. All lanes
// load the outputs' values at the same addresses, and the columns' values at consecutive ones.

struct Params { rows: u32, outs: u32, cols: u32, left_ld4: u32, left_col4: u32, right_ld4: u32 }

@group(0) @binding(0) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> right: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col4 = group.y * WG_SIZE + lane;
    let first = group.x * 16u;
    if col4 * 4u >= params.cols { return; }
    // Outputs beyond the last one repeat a vector, and their sums are dropped.
#for j in 0..4
    let left$j = min(params.left_col4 + first / 4u + $ju, params.left_ld4 - 1u);
#for c in 0..4
    var acc$j$c = vec4<f32>();
#end
#end
    let whole = params.rows / 4u * 4u;
    for (var row = 0u; row < whole; row += 4u) {
#for r in 0..4
        let right$r = right[(row + $ru) * params.right_ld4 + col4];
#end
#for j in 0..4
#for r in 0..4
        let l$j$r = left[(row + $ru) * params.left_ld4 + left$j];
#end
#for c in 0..4
        acc$j$c += l$j0[$c] * right0 + l$j1[$c] * right1 + l$j2[$c] * right2 + l$j3[$c] * right3;
#end
#end
    }
    for (var row = whole; row < params.rows; row++) {
        let r = right[row * params.right_ld4 + col4];
#for j in 0..4
        let last$j = left[row * params.left_ld4 + left$j];
#for c in 0..4
        acc$j$c += last$j[$c] * r;
#end
#end
    }
    let count = min(4u, params.cols - col4 * 4u);
#for j in 0..4
#for c in 0..4
    if first + 4u * $ju + $cu < params.outs {
        let at = (first + 4u * $ju + $cu) * params.cols + col4 * 4u;
        for (var i = 0u; i < count; i++) { gradient[at + i] += acc$j$c[i]; }
    }
#end
#end
}
