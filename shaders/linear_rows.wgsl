// y = x P (+ product * P') (+ bias) for software adapters, without workgroup memory and barriers. P is the decoded panel and P' its rows
// for LoRA. Each lane owns four columns of ROWS rows. All lanes load the values of x at the same addresses, and the panel's strip at
// consecutive ones. Neighboring workgroups take neighboring rows of the same strip, which then stays in the cache.

struct Params {
    rows: u32, cols: u32, depth: u32, rank: u32,
    x_ld4: u32, x_col4: u32, y_ld4: u32, y_col4: u32,
    product_ld4: u32, bias_first: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> panel: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let col4 = group.y * WG_SIZE + lane;
    let first = group.x * ROWS;
    let strip = group.y * (params.depth + params.rank) * WG_SIZE + lane;
    if col4 * 4u >= params.cols { return; }
    // Rows beyond the last one repeat it, and their results are dropped.
#for i in 0..ROWS
    let x$i = min(first + $iu, params.rows - 1u) * params.x_ld4 + params.x_col4;
    var acc$i = vec4<f32>();
#end
    let whole = params.depth / 4u;
    for (var k = 0u; k < whole; k++) {
        let at = strip + k * 4u * WG_SIZE;
        let p0 = panel[at];
        let p1 = panel[at + WG_SIZE];
        let p2 = panel[at + 2u * WG_SIZE];
        let p3 = panel[at + 3u * WG_SIZE];
#for i in 0..ROWS
        let v$i = x[x$i + k];
        acc$i += v$i.x * p0 + v$i.y * p1 + v$i.z * p2 + v$i.w * p3;
#end
    }
    for (var k = whole * 4u; k < params.depth; k++) {
        let p = panel[strip + k * WG_SIZE];
#for i in 0..ROWS
        acc$i += x[x$i + whole][k % 4u] * p;
#end
    }
    for (var k = 0u; k < params.rank; k++) {
        let p = panel[strip + (params.depth + k) * WG_SIZE];
#for i in 0..ROWS
        acc$i += product[min(first + $iu, params.rows - 1u) * params.product_ld4 + k / 4u][k % 4u] * p;
#end
    }
    var shift = vec4<f32>();
    if BIAS {
        let count = min(4u, params.cols - col4 * 4u);
        for (var i = 0u; i < count; i++) { shift[i] = bias[params.bias_first + col4 * 4u + i]; }
    }
#for i in 0..ROWS
    if first + $iu < params.rows {
        let at = (first + $iu) * params.y_ld4 + params.y_col4 + col4;
        var value = acc$i + shift;
        if ACCUMULATE { value += y[at]; }
        y[at] = value;
    }
#end
}
