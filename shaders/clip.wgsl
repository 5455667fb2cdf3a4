// The gradient norm from its partial sums, and the factor by which the optimizer's step clips gradients. One workgroup.

struct Params { count: u32 }

@group(0) @binding(0) var<storage, read> partials: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> hyper: Hyper;
@group(0) @binding(2) var<storage, read_write> state: State;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = vec2<f32>(0.0);
    for (var i = lane; i < params.count; i += WG_SIZE) { sum += partials[i]; }
    let squares = workgroup_sum(sum.x, lane);
    let broken = workgroup_sum(sum.y, lane);
    if lane == 0u {
        let norm = sqrt(squares);
        let finite = broken == 0.0 && (bitcast<u32>(squares) & EXPONENT) != EXPONENT;
        state.norm = norm;
        state.clip = 1.0;
        if finite && hyper.max_norm > 0.0 { state.clip = min(1.0, hyper.max_norm / (norm + 1e-6)); }
        state.finite = select(0.0, 1.0, finite);
    }
}
