// Fills the backward's scratch: both ranges of each row, and for each (row, head) the log-sum-exp beside rowsum(dout * out).

@group(0) @binding(0) var<storage, read> out: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> key_ranges: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read> query_ranges: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> scratch: array<vec2<u32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let item = (group.x + group.y * groups.x) * LANES + lane;
    let row = item / params.heads;
    let head = item % params.heads;
    if row >= params.rows { return; }
    if head == 0u {
        scratch[2u * row] = key_ranges[row];
        scratch[2u * row + 1u] = query_ranges[row];
    }
    let out_at = row * params.out_ld + head * D4;
    let dout_at = row * params.dout_ld + head * D4;
    var sum = 0.0;
    for (var d = 0u; d < D4; d++) {
        sum += dot(out[out_at + d], dout[dout_at + d]);
    }
    let terms = vec2(lse[head * params.rows + row] * LOG2_E, sum);
    scratch[(2u + head) * params.rows + row] = bitcast<vec2<u32>>(terms);
}
