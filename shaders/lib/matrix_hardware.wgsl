// The matrices of linear_cooperative by the device: SIDE by SIDE, f16 factors, f32 sums.

alias Half = f16;

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;

var<workgroup> x_tile: array<f16, X_TILE>;
var<workgroup> w_tile: array<f16, W_TILE>;
var<workgroup> block: array<f32, BLOCK>;

fn x_quad(at: u32) -> vec4<f16> { return x[at]; }

fn to_f16(value: vec4<f32>) -> vec4<f16> { return vec4<f16>(value); }

fn load_a(at: u32) -> MatrixA { return coopLoadT<MatrixA>(&x_tile[at], X_STRIDE); }

fn load_b(at: u32) -> MatrixB {
#if FORWARD
    return coopLoad<MatrixB>(&w_tile[at], W_STRIDE);
#else
    return coopLoadT<MatrixB>(&w_tile[at], W_STRIDE);
#end
}

// The zeros are loaded from workgroup memory: not every driver's language has a zero matrix.
fn zero_c() -> MatrixC { return coopLoadT<MatrixC>(&block[0], BLOCK_STRIDE); }

fn multiply_add(a: MatrixA, b: MatrixB, c: MatrixC) -> MatrixC { return coopMultiplyAdd(a, b, c); }

fn store_c(c: MatrixC, at: u32) { coopStoreT(c, &block[at], BLOCK_STRIDE); }

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32,
) {
    contract(group, lane, subgroup, subgroups);
}
