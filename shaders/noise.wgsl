// NEFTune's noise: y += size * u with u uniform in [-1, 1). `draws` holds the seed, then the bits of the size.

struct Params { rows: u32, cols: u32, ld: u32, site: u32 }

@group(0) @binding(0) var<storage, read> draws: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let first = quad.x * params.cols + 4u * quad.y;
    var unit = vec4<f32>(0.0);
    #for i in 0..4
    unit[$i] = f32(draw(draws[0], params.site, first + $iu) >> 8u) * 0x1p-23 - 1.0;
    #end
    y[at] += bitcast<f32>(draws[1]) * unit;
}
