// f32 to bf16, two in a word: rounded to nearest, ties to even.

struct Params { rows: u32, cols: u32, ld: u32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;

@group(1) @binding(0) var<uniform> params: Params;

// The upper halves of f32 bits. Infinities and NaNs are not rounded: a carry would change a NaN's exponent and sign.
fn rounded(bits: vec4<u32>) -> vec4<u32> {
    let exponent = vec4<u32>(0x7f800000u);
    let upper = bits >> vec4<u32>(16u);
    let nearest = (bits + vec4<u32>(0x7fffu) + (upper & vec4<u32>(1u))) >> vec4<u32>(16u);
    let nan = (bits & vec4<u32>(0x7fffffffu)) > exponent;
    let kept = upper | select(vec4<u32>(0u), vec4<u32>(0x40u), nan);
    return select(nearest, kept, (bits & exponent) == exponent);
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let halves = rounded(x[at]);
    y[at] = vec2<u32>(halves.x | (halves.y << 16u), halves.z | (halves.w << 16u));
}
