// The rows of x, followed by those of `product`, as f16 for linear_cooperative. Each row is scaled by the power of two that brings its
// largest element just under 2^15: no element overflows, and as few as possible lose bits. One workgroup per row.
//
// With 2^w on the weight, 2^o on the LoRA factor and 2^r on the row, `product` takes 2^(r + w - o), so that all products of a row carry
// 2^(r + w). A row takes a smaller power where its `product` would overflow. Where products with several weights are added up, all of
// them carry the smallest of their powers. A row begins with a header of four f16 words per term: -(r + w), w, o.
//
// A value that is not finite, in the row or in its weight or factor, makes the whole row NaN.

struct Term {
    depth: u32, x_first4: u32, x_ld4: u32, rank: u32, product_first4: u32, product_ld4: u32, first_quad: u32, partials: u32, scale: f32,
    @size(12) padding: u32,
}

struct Params { rows: u32, row_quads: u32, weight_scaled: u32, count: u32, terms: array<Term, TERMS> }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> maxima: array<u32>;
@group(0) @binding(3) var<storage, read_write> rows_f16: array<vec2<u32>>;

@group(1) @binding(0) var<uniform> params: Params;

const INFINITE = 0x7f800000u;
const NAN = vec2<u32>(0x7e007e00u);

fn x4(term: Term, row: u32, quad: u32) -> vec4<f32> {
    return mask_tail(x[term.x_first4 + row * term.x_ld4 + quad], quad * 4u, term.depth);
}

fn product4(term: Term, row: u32, quad: u32) -> vec4<f32> {
    return term.scale * mask_tail(product[term.product_first4 + row * term.product_ld4 + quad], quad * 4u, term.rank);
}

fn x_quads(term: Term) -> u32 { return (term.depth + 3u) / 4u; }

fn product_quads(term: Term) -> u32 { return (term.rank + 3u) / 4u; }

// The exponent that brings a magnitude into 2^14 .. 2^15. For zero and values close to it, the largest exponent whose power is an f32.
fn exponent(bits: u32) -> i32 {
    return min(14 + 127 - i32(bits >> 23u), 126);
}

fn packed(value: vec4<f32>, exponent: i32) -> vec2<u32> {
    let half = rounded(scaled(value, max(exponent, -252)));
    return vec2<u32>(pack2x16float(half.xy), pack2x16float(half.zw));
}

// The powers of a product: of its weight, of its LoRA factor, and the largest that its sums can carry.
struct Powers { weight: i32, factor: i32, sums: i32, finite: bool }

fn powers_of(t: u32, row: u32, lane: u32) -> Powers {
    let term = params.terms[t];
    var of_x = 0u;
    for (var quad = lane; quad < x_quads(term); quad += WG_SIZE) { of_x = max(of_x, magnitude(x4(term, row, quad))); }
    var of_product = 0u;
    for (var quad = lane; quad < product_quads(term); quad += WG_SIZE) { of_product = max(of_product, magnitude(product4(term, row, quad))); }
    var of_weight = 0u;
    var of_factor = 0u;
    let first = t * 2u * PARTIALS;
    for (var i = lane; i < term.partials; i += WG_SIZE) {
        of_weight = max(of_weight, maxima[first + i]);
        of_factor = max(of_factor, maxima[first + PARTIALS + i]);
    }
    of_x = workgroup_max_bits(of_x, lane);
    of_product = workgroup_max_bits(of_product, lane);
    of_weight = workgroup_max_bits(of_weight, lane);
    of_factor = workgroup_max_bits(of_factor, lane);
    let w = select(0, exponent(of_weight), params.weight_scaled != 0u);
    let o = exponent(of_factor);
    let sums = min(exponent(of_x) + w, exponent(of_product) + o);
    return Powers(w, o, sums, max(max(of_x, of_product), max(of_weight, of_factor)) < INFINITE);
}

fn write(t: u32, row: u32, powers: Powers, sums: i32, finite: bool, lane: u32) {
    let term = params.terms[t];
    let base = row * params.row_quads;
    if lane == 0u {
        let header = vec4<f32>(f32(clamp(-sums, -252, 254)), f32(powers.weight), f32(powers.factor), 0.0);
        rows_f16[base + t] = vec2<u32>(pack2x16float(header.xy), pack2x16float(header.zw));
    }
    let first = base + term.first_quad;
    for (var quad = lane; quad < x_quads(term); quad += WG_SIZE) {
        rows_f16[first + quad] = select(NAN, packed(x4(term, row, quad), sums - powers.weight), finite);
    }
    for (var quad = lane; quad < product_quads(term); quad += WG_SIZE) {
        rows_f16[first + x_quads(term) + quad] = select(NAN, packed(product4(term, row, quad), sums - powers.factor), finite);
    }
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let powers0 = powers_of(0u, row, lane);
    var sums = powers0.sums;
    var finite = powers0.finite;
#for t in 1..TERMS
    var powers$t = powers0;
    if $tu < params.count {
        powers$t = powers_of($tu, row, lane);
        sums = min(sums, powers$t.sums);
        finite = finite && powers$t.finite;
    }
#end
    write(0u, row, powers0, sums, finite, lane);
#for t in 1..TERMS
    if $tu < params.count { write($tu, row, powers$t, sums, finite, lane); }
#end
}
