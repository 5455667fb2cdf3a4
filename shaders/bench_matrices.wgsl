// The ceiling of an adapter's cooperative matrices: chains of products in registers, with f16 factors and f32 sums. The
// subgroups of a workgroup share its turns, so that its work does not depend on their number.

struct Params { turns: u32, factor: f32 }

@group(0) @binding(0) var<storage, read_write> y: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

const ELEMENTS = SIDE * SIDE;

var<workgroup> factors: array<f16, ELEMENTS>;
// Each chain begins with another value: a compiler would merge equal chains.
var<workgroup> starts: array<f32, ACCUMULATORS * ELEMENTS>;

@compute @workgroup_size(WG_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32,
) {
    for (var i = lane; i < ELEMENTS; i += WG_SIZE) { factors[i] = f16(params.factor); }
    for (var i = lane; i < ACCUMULATORS * ELEMENTS; i += WG_SIZE) { starts[i] = f32(i / ELEMENTS); }
    workgroupBarrier();
    let a = coopLoadT<MatrixA>(&factors[0], SIDE);
    let b = coopLoadT<MatrixB>(&factors[0], SIDE);
#for i in 0..ACCUMULATORS
    var sum$i = coopLoadT<MatrixC>(&starts[$iu * ELEMENTS], SIDE);
#end
    for (var turn = subgroup; turn < params.turns; turn += subgroups) {
#for i in 0..ACCUMULATORS
        sum$i = coopMultiplyAdd(a, b, sum$i);
#end
    }
    var sum = sum0;
#for i in 1..ACCUMULATORS
    sum = sum + sum$i;
#end
    coopStoreT(sum, &y[(group.x * MOST_SUBGROUPS + subgroup) * ELEMENTS], SIDE);
}
