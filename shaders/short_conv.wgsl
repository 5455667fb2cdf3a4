// Short convolution: y is the sum of the values of this row and the rows before it, each with the weight of its distance. GATED:
// out = C y. Else out = y sigmoid(y). Rows before the first of the pass come from the state, where the sequence has such.

struct Params { rows: u32, channels: u32, ld: u32, ld_out: u32, taps: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> inputs: array<Value>;
@group(0) @binding(3) var<storage, read> state: array<Value>;
@group(0) @binding(4) var<storage, read_write> out: array<Value>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let units = params.channels / LANES;
    let row = index / units;
    let unit = index - row * units;
    if row >= params.rows { return; }
    let position = positions[row];
    var y = Value(0.0);
    for (var distance = 0u; distance < min(params.taps, position + 1u); distance++) {
        var value: Value;
        if distance <= row {
            value = value_at(row - distance, unit);
        } else {
            value = state[(position - distance) % (params.taps - 1u) * (params.ld_out / LANES) + unit];
        }
        y += tap(unit * LANES, distance) * value;
    }
#if GATED
    let result = inputs[row * (params.ld / LANES) + units + unit] * y;
#else
    let result = y * gate_of(y);
#end
    out[row * (params.ld_out / LANES) + unit] = result;
}
