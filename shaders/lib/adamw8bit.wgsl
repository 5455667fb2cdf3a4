// The bindings and parameters of both variants of AdamW with moments in 8 bits.

struct Params { quads: u32, blocks: u32 }

@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> state: State;
@group(0) @binding(2) var<storage, read> hyper: Hyper;
@group(0) @binding(3) var<storage, read> tables: array<f32>;
@group(0) @binding(4) var<storage, read_write> values: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> first_codes: array<u32>;
@group(0) @binding(6) var<storage, read_write> second_codes: array<u32>;
// A block's scales of both moments.
@group(0) @binding(7) var<storage, read_write> scales: array<vec2<f32>>;

@group(1) @binding(0) var<uniform> params: Params;
