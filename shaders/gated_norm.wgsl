// Gated norm: out = gain * norm(x) * z * sigmoid(z). One workgroup per head of a row.

struct Params { rows: u32, dim4: u32, eps: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> z: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * params.dim4;
    var squares = 0.0;
    for (var i = lane; i < params.dim4; i += WG_SIZE) {
        let v = x[base + i];
        squares += dot(v, v);
    }
    let scale = inverseSqrt(workgroup_sum(squares, lane) / f32(4u * params.dim4) + params.eps);
    for (var i = lane; i < params.dim4; i += WG_SIZE) {
        let gate = z[base + i];
        out[base + i] = x[base + i] * scale * gain[i] * gate * sigmoid(gate);
    }
}
