// Squared norm of each row of one panel of a frozen weight, in any storage, and its root as DoRA's first magnitude. One workgroup per
// row.

struct Params { rows: u32, cols: u32, first_row: u32 }

@group(0) @binding(0) var<storage, read_write> squares: array<f32>;
@group(0) @binding(4) var<storage, read_write> magnitudes: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    var sum = 0.0;
    for (var col = 4u * lane; col < params.cols; col += 4u * WG_SIZE) {
        let value = weight4(row, col, params.cols);
        #for i in 0..4
        if col + $iu < params.cols { sum += value[$i] * value[$i]; }
        #end
    }
    let total = workgroup_sum(sum, lane);
    if lane == 0u {
        squares[params.first_row + row] = total;
        magnitudes[params.first_row + row] = sqrt(total);
    }
}
