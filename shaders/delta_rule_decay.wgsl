// The gated delta rule, backward: the gradient of the logarithm of the decay, which is the sum over the terms of all rows from this one to
// the end of the sequence, and with it that of its raw value. `decays` has the terms, and takes the gradient times the logarithm,
// each row's part of the gradient of a_log. One invocation per interval and head.

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> a_log: array<f32>;
@group(0) @binding(2) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> anchors: array<f32>;
@group(0) @binding(5) var<storage, read_write> decays: array<f32>;
@group(0) @binding(6) var<storage, read_write> da: array<f32>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let chunk = index / params.value_heads;
    let head = index - chunk * params.value_heads;
    if chunk >= params.chunks { return; }
    let begin = chunk * params.interval;
    let end = min(begin + params.interval, params.rows);
    var gradient = 0.0;
    for (var i = 0u; i < params.anchors; i++) { gradient += anchors[index * params.anchors + i]; }
    for (var row_end = end; row_end > begin; row_end--) {
        let row = row_end - 1u;
        let at = row * params.gate_ld + head;
        // Nothing decays where a sequence begins.
        gradient = select(gradient + decays[at], 0.0, factors[factors_at(row, head)].x == 0.0);
        let raw = a[at] + dt_bias[head];
        da[at] = -gradient * exp(a_log[head]) * logistic(raw);
        decays[at] = gradient * log_decay(raw, a_log[head]);
    }
}
