// Workgroup reductions in a fixed order: the same bits on every run.

var<workgroup> reduce_scratch: array<f32, WG_SIZE>;

// The sum over all invocations, which each of them gets. Needs uniform control flow.
fn workgroup_sum(value: f32, lane: u32) -> f32 {
    reduce_scratch[lane] = value;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if lane < half { reduce_scratch[lane] += reduce_scratch[lane + half]; }
        workgroupBarrier();
    }
    let total = reduce_scratch[0];
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    reduce_scratch[lane] = value;
    workgroupBarrier();
    for (var half = WG_SIZE / 2u; half > 0u; half /= 2u) {
        if lane < half { reduce_scratch[lane] = max(reduce_scratch[lane], reduce_scratch[lane + half]); }
        workgroupBarrier();
    }
    let highest = reduce_scratch[0];
    workgroupBarrier();
    return highest;
}
