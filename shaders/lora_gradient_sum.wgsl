// Adds the partial sums of lora_gradient, in the order of the splits, to a gradient: [rank, cols], or [cols, rank] with TRANSPOSED.

struct Params { cols: u32, rank: u32, splits: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradient: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if index >= params.cols * params.rank { return; }
    let j = index / params.cols;
    let col = index % params.cols;
    let ld = (params.cols + 3u) / 4u * 4u;
    var sum = 0.0;
    for (var split = 0u; split < params.splits; split++) {
        sum += partials[(split * params.rank + j) * ld + col];
    }
    let at = select(index, col * params.rank + j, TRANSPOSED);
    gradient[at] += params.scale * sum;
}
