// Softmax cross-entropy: one workgroup per row reads the logits once for the loss and, with GRADIENT, writes their
// gradient over them, times the row's weight. Labels beyond the vocabulary have neither loss nor gradient.

struct Params { rows: u32, cols: u32, ld: u32, logit_scale: f32, cap: f32 }

@group(0) @binding(0) var<storage, read> labels: array<u32>;
@group(0) @binding(1) var<storage, read> label_weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read_write> logits: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * (params.ld / 4u);
    let quads = (params.cols + 3u) / 4u;
    let label = labels[row];
    let counted = label < params.cols;
    var label_logit = 0.0;
    if counted { label_logit = load(base, label / 4u)[label % 4u]; }
    var highest = LOWEST;
    var sum = 0.0;
    for (var quad = lane; quad < quads; quad += WG_SIZE) {
        let v = load(base, quad);
        let higher = max(max(max(v.x, v.y), max(v.z, v.w)), highest);
        sum = sum * exp(highest - higher) + dot(exp(v - higher), vec4<f32>(1.0));
        highest = higher;
    }
    let row_highest = workgroup_max(highest, lane);
    let row_sum = workgroup_sum(sum * exp(highest - row_highest), lane);
    if lane == 0u {
        losses[row] = select(0.0, log(row_sum) + (row_highest - label_logit), counted);
    }
    if GRADIENT {
        let scale = select(0.0, label_weights[row], counted);
        for (var quad = lane; quad < quads; quad += WG_SIZE) {
            let softmax = exp(load(base, quad) - row_highest) / row_sum;
            let gradient = (softmax - one_hot(quad, label)) * scale;
            logits[base + quad] = through_range(base, quad, gradient);
        }
    }
}
