// The sums of four values over all invocations of a workgroup, in a fixed order. Needs uniform control flow.

var<workgroup> reduce_scratch: array<vec4<f32>, WG_SIZE>;

fn workgroup_sums(values: vec4<f32>, lane: u32) -> vec4<f32> {
    reduce_scratch[lane] = values;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
        workgroupBarrier();
    }
    let totals = reduce_scratch[0];
    workgroupBarrier();
    return totals;
}
