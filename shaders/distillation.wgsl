// Distillation: one workgroup per row reads the logits once for both losses, that by the teacher's probabilities and that by the label,
// and with GRADIENT writes the gradient of their weighted sum over the logits, times the row's weight. Labels beyond the vocabulary
// have neither loss nor gradient.

struct Params { rows: u32, cols: u32, ld: u32, top_k: u32, logit_scale: f32, cap: f32, temperature: f32, hard_share: f32 }

@group(0) @binding(0) var<storage, read> labels: array<u32>;
@group(0) @binding(1) var<storage, read> label_weights: array<f32>;
// The teacher's tokens of each row, ascending; beyond the vocabulary where there are fewer.
@group(0) @binding(2) var<storage, read> teacher_ids: array<u32>;
@group(0) @binding(3) var<storage, read> teacher_probabilities: array<f32>;
@group(0) @binding(4) var<storage, read_write> losses: array<f32>;
@group(0) @binding(5) var<storage, read_write> label_losses: array<f32>;
@group(0) @binding(6) var<storage, read_write> logits: array<vec4<f32>>;

@group(1) @binding(0) var<uniform> params: Params;

// The slopes of the teacher's tokens, since the gradient takes the place of the logits that they follow from.
var<workgroup> slopes: array<f32, MAX_TOP_K>;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows { return; }
    let base = row * (params.ld / 4u);
    let quads = (params.cols + 3u) / 4u;
    let cooled = 1.0 / params.temperature;
    let label = labels[row];
    let counted = label < params.cols;
    var label_logit = 0.0;
    if counted { label_logit = load(base, label / 4u)[label % 4u]; }
    var highest = LOWEST;
    var sum = 0.0;
    var soft_sum = 0.0;
    for (var quad = lane; quad < quads; quad += WG_SIZE) {
        let v = load(base, quad);
        let higher = max(max(max(v.x, v.y), max(v.z, v.w)), highest);
        sum = sum * exp(highest - higher) + dot(exp(v - higher), vec4<f32>(1.0));
        soft_sum = soft_sum * exp((highest - higher) * cooled) + dot(exp((v - higher) * cooled), vec4<f32>(1.0));
        highest = higher;
    }
    let row_highest = workgroup_max(highest, lane);
    let row_sum = workgroup_sum(sum * exp(highest - row_highest), lane);
    let row_soft_sum = workgroup_sum(soft_sum * exp((highest - row_highest) * cooled), lane);
    let first = row * params.top_k;
    var terms = 0.0;
    for (var at = lane; at < params.top_k; at += WG_SIZE) {
        let id = teacher_ids[first + at];
        let p = teacher_probabilities[first + at];
        if id < params.cols && p > 0.0 {
            terms += p * (log(p) - (load(base, id / 4u)[id % 4u] - row_highest) * cooled);
            if SCALED || CAPPED { slopes[at] = logits_slope(logits[base + id / 4u])[id % 4u]; }
        }
    }
    let divergence = workgroup_sum(terms, lane) + log(row_soft_sum);
    if lane == 0u {
        let soft = params.temperature * params.temperature * divergence;
        let hard = log(row_sum) + (row_highest - label_logit);
        losses[row] = select(0.0, (1.0 - params.hard_share) * soft + params.hard_share * hard, counted);
        label_losses[row] = select(0.0, hard, counted);
    }
    if GRADIENT {
        let scale = select(0.0, label_weights[row], counted);
        let soft_scale = (1.0 - params.hard_share) * params.temperature * scale;
        let hard_scale = params.hard_share * scale;
        for (var quad = lane; quad < quads; quad += WG_SIZE) {
            let below = load(base, quad) - row_highest;
            let by_label = (exp(below) / row_sum - one_hot(quad, label)) * hard_scale;
            let gradient = exp(below * cooled) / row_soft_sum * soft_scale + by_label;
            logits[base + quad] = through_range(base, quad, gradient);
        }
        storageBarrier();
        // The invocation of the first of the tokens that share a vector takes all of them: a write to a component may be one of the
        // whole vector.
        for (var at = lane; at < params.top_k; at += WG_SIZE) {
            let place = teacher_ids[first + at] / 4u;
            let is_first = at == 0u || teacher_ids[first + max(at, 1u) - 1u] / 4u != place;
            if is_first && teacher_ids[first + at] < params.cols {
                var gradient = logits[base + place];
                for (var next = at; next < params.top_k; next += 1u) {
                    let id = teacher_ids[first + next];
                    if id / 4u != place { break; }
                    var part = teacher_probabilities[first + next] * soft_scale;
                    if (SCALED || CAPPED) && part != 0.0 { part *= slopes[next]; }
                    if id < params.cols { gradient[id % 4u] -= part; }
                }
                logits[base + place] = gradient;
            }
        }
    }
}
