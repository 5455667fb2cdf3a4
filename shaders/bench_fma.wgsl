// The ceiling of an adapter's arithmetic: chains of multiply-adds in registers. ACCUMULATORS chains of vec4 hide each other's latency.
// UNROLLED steps per turn hide the cost of the loop, which some software adapters carry values through in memory.

struct Params { turns: u32, factor: f32, term: f32 }

@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let factor = vec4<f32>(params.factor);
    let term = vec4<f32>(params.term);
#for i in 0..ACCUMULATORS
    var a$i = vec4<f32>(f32($i), f32($i + 1), f32($i + 2), f32($i + 3));
#end
    for (var turn = 0u; turn < params.turns; turn++) {
#for step in 0..UNROLLED
#for i in 0..ACCUMULATORS
#if FUSED
        a$i = fma(a$i, factor, term);
#else
        a$i = a$i * factor + term;
#end
#end
#end
    }
    var sum = vec4<f32>();
#for i in 0..ACCUMULATORS
    sum += a$i;
#end
    y[id.x] = sum;
}
