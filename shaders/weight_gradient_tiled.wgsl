// gradient += left^T right, 64 outputs by 64 columns per workgroup, 8 x 4 per invocation. The contracted index is
// the outermost one of both operands, so that tiles are copied unchanged.

struct Params { rows: u32, outs: u32, cols: u32, left_ld4: u32, left_col4: u32, right_ld4: u32 }

@group(0) @binding(0) var<storage, read> left: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> right: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

const WG_SIZE = 128u;
const BK = 16u;

var<workgroup> left_tile: array<vec4<f32>, 256>;
var<workgroup> right_tile: array<vec4<f32>, 256>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first_out = group.y * 64u;
    let first_col = group.x * 64u;
    let tx = lane % 16u;
    let ty = lane / 16u;
#for i in 0..8
    var acc$i = vec4<f32>();
#end
    for (var first = 0u; first < params.rows; first += BK) {
        for (var quad = lane; quad < 256u; quad += WG_SIZE) {
            let row = first + quad / 16u;
            let left_at = params.left_col4 + first_out / 4u + quad % 16u;
            let right_at = first_col / 4u + quad % 16u;
            var a = vec4<f32>();
            var b = vec4<f32>();
            if row < params.rows && left_at < params.left_ld4 { a = left[row * params.left_ld4 + left_at]; }
            if row < params.rows && right_at < params.right_ld4 { b = right[row * params.right_ld4 + right_at]; }
            left_tile[quad] = a;
            right_tile[quad] = b;
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k++) {
            let r = right_tile[k * 16u + tx];
            let a = left_tile[k * 16u + ty * 2u];
            let b = left_tile[k * 16u + ty * 2u + 1u];
            acc0 += a.x * r;
            acc1 += a.y * r;
            acc2 += a.z * r;
            acc3 += a.w * r;
            acc4 += b.x * r;
            acc5 += b.y * r;
            acc6 += b.z * r;
            acc7 += b.w * r;
        }
        workgroupBarrier();
    }
    let col = first_col + tx * 4u;
    if col >= params.cols { return; }
    let count = min(4u, params.cols - col);
#for i in 0..8
    let out$i = first_out + ty * 8u + $iu;
    if out$i < params.outs {
        for (var i = 0u; i < count; i++) { gradient[out$i * params.cols + col + i] += acc$i[i]; }
    }
#end
}
