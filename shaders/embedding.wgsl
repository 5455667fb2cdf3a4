// Embedding: rows of one panel of a table, in any storage, times a factor.

struct Params { rows: u32, cols: u32, ld: u32, first_row: u32, panel_rows: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let quad = quad_of(group, groups, lane, params.cols);
    if quad.x >= params.rows { return; }
    // Wraps to a large number for tokens before the panel.
    let row = tokens[quad.x] - params.first_row;
    if row >= params.panel_rows { return; }
    let col = 4u * quad.y;
    let value = params.scale * weight4(row, col, params.cols);
    #for i in 0..4
    if col + $iu < params.cols { y[quad.x * params.ld + col + $iu] = value[$i]; }
    #end
}
