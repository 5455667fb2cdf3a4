// Lion with decoupled decay over a flat range, see ops/lion.rs; nothing changes if the gradient is not finite.

struct Params { count: u32 }

@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: State;
@group(0) @binding(2) var<storage, read> hyper: Hyper;
@group(0) @binding(3) var<storage, read_write> values: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> momenta: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let at = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if at >= params.count || state.finite == 0.0 { return; }
    let g = grads[at] * state.clip;
    let m = momenta[at];
    let direction = sign(m + (g - m) * hyper.one_minus_beta1);
    let value = values[at];
    values[at] = value - (value * (hyper.learning_rate * hyper.weight_decay) + direction * hyper.learning_rate);
    momenta[at] = m + (g - m) * hyper.one_minus_beta2;
}
