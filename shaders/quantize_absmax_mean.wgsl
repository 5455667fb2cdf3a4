// The mean of all absmax values with torch's order of additions, see quant/nested.rs: 8 lanes x 4 streams, each a cascade of sums.
// Writes it to nested[256] and the code map to nested[0 .. 256].

struct Params { count: u32, step_log2: u32 }

@group(0) @binding(0) var<storage, read> absmax: array<f32>;
// 256 code values, then the 255 first steps (as u32 bits) that quantize_absmax takes.
@group(0) @binding(1) var<storage, read> code_map: array<f32>;
@group(0) @binding(2) var<storage, read_write> nested: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> sums: array<f32, 32>;

fn cascade(first: u32, stride: u32, count: u32) -> f32 {
    let step = 1u << params.step_log2;
    let mask = step - 1u;
    var levels = vec4<f32>();
    var i = 0u;
    while i + step <= count {
        for (var j = 0u; j < step; j++) {
            levels.x += absmax[first + i * stride];
            i++;
        }
        levels.y += levels.x;
        levels.x = 0.0;
        if (i & (mask << params.step_log2)) == 0u {
            levels.z += levels.y;
            levels.y = 0.0;
            if (i & (mask << (2u * params.step_log2))) == 0u {
                levels.w += levels.z;
                levels.z = 0.0;
            }
        }
    }
    while i < count {
        levels.x += absmax[first + i * stride];
        i++;
    }
    return ((levels.x + levels.y) + levels.z) + levels.w;
}

@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < 256u; i += 32u) { nested[i] = code_map[i]; }
    let lanes = select(8u, 1u, params.count < 8u);
    let vectors = params.count / lanes;
    let per_stream = vectors / 4u;
    // Invocation = stream * 8 + lane of the vector.
    let column = lane % 8u;
    let stream = lane / 8u;
    var sum = 0.0;
    if column < lanes {
        sum = cascade(stream * lanes + column, 4u * lanes, per_stream);
        if stream == 0u {
            for (var row = 4u * per_stream; row < vectors; row++) { sum += absmax[row * lanes + column]; }
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        var total = 0.0;
        for (var i = vectors * lanes; i < params.count; i++) { total += absmax[i]; }
        for (var i = 0u; i < lanes; i++) {
            total += ((sums[i] + sums[8u + i]) + sums[16u + i]) + sums[24u + i];
        }
        nested[256] = total / f32(params.count);
    }
}
