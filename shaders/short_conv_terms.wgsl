// Short convolution: what each row adds to the gradient of each weight, the gradient of y of the row times the value of the row that
// the weight belongs to. GATED: the gradient of y is D C. Row by row as the weights lie, a channel's one after the other.

struct Params { rows: u32, channels: u32, ld: u32, ld_out: u32, taps: u32, ld_terms: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> inputs: array<Value>;
@group(0) @binding(3) var<storage, read> dout: array<Value>;
@group(0) @binding(4) var<storage, read_write> terms: array<Value>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let count = params.channels * params.taps;
    let row = index / count;
    let at = index - row * count;
    if row >= params.rows { return; }
    let channel = at / params.taps;
    let distance = params.taps - 1u - (at - channel * params.taps);
    var term = Value(0.0);
    if distance <= min(positions[row], row) {
        term = dout[row * params.ld_out + channel];
#if GATED
        term *= inputs[row * params.ld + params.channels + channel];
#end
        term *= value_at(row - distance, channel);
    }
    terms[row * params.ld_terms + at] = term;
}
