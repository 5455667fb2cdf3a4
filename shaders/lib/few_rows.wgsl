// The bindings and parameters of both variants of a contraction of a few rows.

struct Params {
    rows: u32, cols: u32, in_features: u32, rank: u32,
    x_ld4: u32, y_ld: u32, product_ld4: u32,
    // The panel's first row in the whole weight.
    first: u32,
    scale: f32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> product: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> factor: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;
