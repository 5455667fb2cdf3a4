// Embedding gradient without atomics: `order` holds the rows sorted by token. The workgroup at the first row of a token adds all
// of its rows, in their order, to the token's row of one panel.

struct Params { rows: u32, cols: u32, ld: u32, first_row: u32, panel_rows: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> order: array<u32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

// The host makes a permutation of the rows; the bound holds where it errs.
fn ordered(at: u32) -> u32 { return min(order[at], params.rows - 1u); }

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let begin = group.x + group.y * groups.x;
    if begin >= params.rows { return; }
    let token = tokens[ordered(begin)];
    if begin > 0u && tokens[ordered(max(begin, 1u) - 1u)] == token { return; }
    // Wraps to a large number for tokens before the panel.
    let row = token - params.first_row;
    if row >= params.panel_rows { return; }
    var end = begin + 1u;
    while end < params.rows && tokens[ordered(min(end, params.rows - 1u))] == token { end++; }
    for (var col = lane; col < params.cols; col += WG_SIZE) {
        var sum = 0.0;
        for (var i = begin; i < end; i++) { sum += dy[ordered(i) * params.ld + col]; }
        gradient[row * params.cols + col] += params.scale * sum;
    }
}
