// Gated norm, backward: from the gradient D of its result those of x and z; D z sigmoid(z), the gradient of gain * norm(x), takes the
// place of D. One workgroup per head of a row.

struct Params { rows: u32, dim4: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> z: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dout: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dz: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * params.dim4;
    let dim = f32(4u * params.dim4);
    var squares = 0.0;
    var products = 0.0;
    for (var i = lane; i < params.dim4; i += WG_SIZE) {
        let v = x[base + i];
        let gate = z[base + i];
        let d = dout[base + i] * gate * sigmoid(gate);
        squares += dot(v, v);
        products += dot(v, d * gain[i]);
    }
    let mean_square = workgroup_sum(squares, lane) / dim + params.eps;
    let pull = workgroup_sum(products, lane) / (dim * mean_square);
    let scale = inverseSqrt(mean_square);
    for (var i = lane; i < params.dim4; i += WG_SIZE) {
        let v = x[base + i];
        let gate = z[base + i];
        let s = sigmoid(gate);
        let d = dout[base + i];
        let of_norm = d * gate * s;
        dz[base + i] = d * v * scale * gain[i] * s * (1.0 + gate * (1.0 - s));
        dx[base + i] = scale * (of_norm * gain[i] - v * pull);
        dout[base + i] = of_norm;
    }
}
