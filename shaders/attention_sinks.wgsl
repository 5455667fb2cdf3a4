// Attention sinks: each head has a logit beside the scores, whose share of the softmax reads no value. With the log-sum-exp of the scores
// l and the sink s, out becomes out sigmoid(l - s), and the log-sum-exp becomes log(exp(l) + exp(s)). One invocation per row and head.

@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;
@group(0) @binding(2) var<storage, read> sinks: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let item = (group.x + group.y * groups.x) * LANES + lane;
    let row = item / params.heads;
    let head = item % params.heads;
    if row >= params.rows { return; }
    let at = head * params.rows + row;
    // The smaller of both is the exponent, so that nothing overflows; a row without keys has the lowest log-sum-exp.
    let difference = lse[at] - sinks[head];
    let small = exp(max(-abs(difference), -87.0));
    let share = select(small, 1.0, difference > 0.0) / (1.0 + small);
    lse[at] = max(lse[at], sinks[head]) + log(1.0 + small);
    let out_at = (params.first_row + row) * params.out_ld + head * D4;
    for (var d = 0u; d < D4; d++) { out[out_at + d] *= share; }
}
