// Tiles of the attention kernels: 32 own rows against 32 other rows, 32 columns of the head at a time. Thread (tr, tc) owns the
// rows tr + TR * i and the other rows tc + 8 * j; slot tc of a row of `weights` holds those four. Rows of 9 vec4s spread the banks.

const TILE: u32 = 32u;
const STRIDE: u32 = 9u;
const WG_SIZE: u32 = 8u * TR;

var<workgroup> own: array<vec4<f32>, 288>;
var<workgroup> other: array<vec4<f32>, 288>;
var<workgroup> weights: array<vec4<f32>, 288>;

fn dots(a: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) -> vec4<f32> {
    return vec4(dot(a, b0), dot(a, b1), dot(a, b2), dot(a, b3));
}

// True for each of the thread's four other rows, from `at` on, that lies in `range`.
fn within(at: u32, range: vec2<u32>) -> vec4<bool> {
    let rows = vec4(at) + vec4(0u, 8u, 16u, 24u);
    return (rows >= vec4(range.x)) & (rows < vec4(range.y));
}
