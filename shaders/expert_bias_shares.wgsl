// What the bias of an expert's output adds to the gradient of the expert's weight: its product with the gradient of the row's sum. One
// workgroup per pair of a row and an expert.

struct Params { pairs: u32, cols: u32, ld: u32, top: u32 }

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> shares: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let pair = group.x + group.y * groups.x;
    if pair >= params.pairs { return; }
    let base = pair / params.top * params.ld;
    let of_expert = chosen[pair] * params.cols;
    var share = 0.0;
    for (var i = lane; i < params.cols; i += WG_SIZE) { share += dy[base + i] * bias[of_expert + i]; }
    let total = workgroup_sum(share, lane);
    if lane == 0u { shares[pair] += total; }
}
