// Dropout: y = mask * x * scale; with ADD the result is added to y.

struct Params { rows: u32, cols: u32, ld: u32, site: u32, threshold: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> step_seed: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    let at = quad.x * (params.ld / 4u) + quad.y;
    let first = quad.x * params.cols + 4u * quad.y;
    var kept = vec4<bool>(false);
    #for i in 0..4
    kept[$i] = draw(step_seed[0], params.site, first + $iu) >= params.threshold;
    #end
    var value = select(vec4<f32>(0.0), x[at] * params.scale, kept);
    if ADD { value += y[at]; }
    y[at] = value;
}
