// Appends the LoRA term to a weight panel: `rank` more rows, scaled. The source is lora_B [out, rank] in the forward direction,
// lora_A [rank, in] for the input gradient.

struct Params { first: u32, cols: u32, rank: u32, depth: u32, scale: f32 }

@group(0) @binding(0) var<storage, read_write> panel: array<f32>;
@group(0) @binding(1) var<storage, read> factor: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if index >= params.cols * params.rank { return; }
    let j = index / params.cols;
    let col = index % params.cols;
    var at = j * params.cols + col;
    if FORWARD { at = (params.first + col) * params.rank + j; }
    panel[panel_index(params.depth - params.rank + j, col, params.depth)] = params.scale * factor[at];
}
