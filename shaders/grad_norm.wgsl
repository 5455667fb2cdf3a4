// Sums of squares of a gradient range: one partial sum and one count of non-finite elements per workgroup.

struct Params { quads: u32, groups: u32, first_partial: u32 }

@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> partials: array<vec2<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = group.x + group.y * groups.x;
    if index >= params.groups { return; }
    let first = index * QUADS_PER_GROUP;
    let end = min(first + QUADS_PER_GROUP, params.quads);
    var squares = vec4<f32>(0.0);
    var broken = 0u;
    for (var i = first + lane; i < end; i += WG_SIZE) {
        let g = grads[i];
        squares += g * g;
        if any((bitcast<vec4<u32>>(g) & vec4<u32>(EXPONENT)) == vec4<u32>(EXPONENT)) { broken += 1u; }
    }
    let sum = workgroup_sum(dot(squares, vec4<f32>(1.0)), lane);
    let all_broken = workgroup_sum(f32(broken), lane);
    if lane == 0u { partials[params.first_partial + index] = vec2<f32>(sum, all_broken); }
}
