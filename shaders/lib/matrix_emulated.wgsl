// The matrices of linear_cooperative in plain f32 with factors rounded as f16, for tests on any adapter. LANES invocations act
// as a subgroup, and each holds every LANES-th element of a sum.

alias Half = f32;

struct MatrixA { at: u32 }
struct MatrixB { at: u32 }
struct MatrixC { element: array<f32, PER_LANE> }

@group(0) @binding(0) var<storage, read> x: array<vec2<u32>>;

var<workgroup> x_tile: array<f32, X_TILE>;
var<workgroup> w_tile: array<f32, W_TILE>;
var<workgroup> block: array<f32, BLOCK>;
var<private> own: u32;

fn x_quad(at: u32) -> vec4<f32> { return vec4<f32>(unpack2x16float(x[at].x), unpack2x16float(x[at].y)); }

fn to_f16(value: vec4<f32>) -> vec4<f32> { return rounded(value); }

fn load_a(at: u32) -> MatrixA { return MatrixA(at); }

fn load_b(at: u32) -> MatrixB { return MatrixB(at); }

fn zero_c() -> MatrixC { return MatrixC(); }

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC {
    var sum = c;
    for (var i = 0u; i < PER_LANE; i++) {
        let at = own + i * LANES;
        for (var k = 0u; k < SIDE; k++) {
#if FORWARD
            let w = w_tile[b.at + (at % SIDE) * W_STRIDE + k];
#else
            let w = w_tile[b.at + k * W_STRIDE + at % SIDE];
#end
            sum.element[i] += x_tile[a.at + (at / SIDE) * X_STRIDE + k] * w;
        }
    }
    return sum;
}

fn store_c(c: MatrixC, at: u32) {
    var stored = c;
    for (var i = 0u; i < PER_LANE; i++) {
        let element = own + i * LANES;
        block[at + (element / SIDE) * BLOCK_STRIDE + element % SIDE] = stored.element[i];
    }
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    own = lane % LANES;
    contract(group, lane, lane / LANES, WG_SIZE / LANES);
}
