// The rows of x, and of `low` after them, as f16 for linear_cooperative: each row is scaled by the power of two that brings its largest
// element just under 2^15, so that none overflows and as many of the small ones as can be keep their bits. One workgroup a row.
//
// With 2^w on the weight, 2^o on the LoRA factor and 2^r on the row, `low` takes 2^(r + w - o): all products of a row then carry
// 2^(r + w). A row is scaled by less where its `low` would overflow. A row of four words of header: -(r + w), w, o as f16.
//
// A value that is not finite, in the row or in what it is multiplied with, makes the whole row NaN.

struct Params { rows: u32, cols: u32, x_ld4: u32, x_col4: u32, rank: u32, low_ld4: u32, row_quads: u32, partials: u32, weight_scaled: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> low: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> maxima: array<u32>;
@group(0) @binding(3) var<storage, read_write> halves: array<vec2<u32>>;

@group(1) @binding(0) var<uniform> params: Params;

const INFINITE = 0x7f800000u;
const NAN = vec2<u32>(0x7e007e00u);

fn x4(row: u32, quad: u32) -> vec4<f32> {
    return keep(x[row * params.x_ld4 + params.x_col4 + quad], quad * 4u, params.cols);
}

fn low4(row: u32, quad: u32) -> vec4<f32> {
    return params.scale * keep(low[row * params.low_ld4 + quad], quad * 4u, params.rank);
}

// The exponent that brings a magnitude into 2^14 .. 2^15; for zero, and for what is close to it, the largest whose power is an f32.
fn exponent(bits: u32) -> i32 {
    return min(14 + 127 - i32(bits >> 23u), 126);
}

fn packed(value: vec4<f32>, exponent: i32) -> vec2<u32> {
    let half = rounded(scaled(value, max(exponent, -252)));
    return vec2<u32>(pack2x16float(half.xy), pack2x16float(half.zw));
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let x_quads = (params.cols + 3u) / 4u;
    let low_quads = (params.rank + 3u) / 4u;
    var of_x = 0u;
    for (var quad = lane; quad < x_quads; quad += WG_SIZE) { of_x = max(of_x, magnitude(x4(row, quad))); }
    var of_low = 0u;
    for (var quad = lane; quad < low_quads; quad += WG_SIZE) { of_low = max(of_low, magnitude(low4(row, quad))); }
    var of_weight = 0u;
    var of_other = 0u;
    for (var i = lane; i < params.partials; i += WG_SIZE) {
        of_weight = max(of_weight, maxima[i]);
        of_other = max(of_other, maxima[PARTIALS + i]);
    }
    of_x = workgroup_max_bits(of_x, lane);
    of_low = workgroup_max_bits(of_low, lane);
    of_weight = workgroup_max_bits(of_weight, lane);
    of_other = workgroup_max_bits(of_other, lane);

    let w = select(0, exponent(of_weight), params.weight_scaled != 0u);
    let o = exponent(of_other);
    let r = min(exponent(of_x), exponent(of_low) + o - w);
    let finite = max(max(of_x, of_low), max(of_weight, of_other)) < INFINITE;
    let base = row * params.row_quads;
    if lane == 0u {
        let header = vec4<f32>(f32(clamp(-(r + w), -252, 254)), f32(w), f32(o), 0.0);
        halves[base] = vec2<u32>(pack2x16float(header.xy), pack2x16float(header.zw));
    }
    for (var quad = lane; quad < x_quads; quad += WG_SIZE) {
        halves[base + 1u + quad] = select(NAN, packed(x4(row, quad), r), finite);
    }
    for (var quad = lane; quad < low_quads; quad += WG_SIZE) {
        halves[base + 1u + x_quads + quad] = select(NAN, packed(low4(row, quad), r + w - o), finite);
    }
}
