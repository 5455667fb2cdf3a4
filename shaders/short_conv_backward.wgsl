// Short convolution, backward: du is the sum of the gradients of y over this row and the rows behind it in its sequence, each with the
// weight of its distance. GATED: with D the gradient of the result, that of y is D C; dC = D y, dB = du X and dX = du B. Else `dout`
// is the gradient of y, and du that of the inputs.

struct Params { rows: u32, channels: u32, ld: u32, ld_out: u32, taps: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> inputs: array<Value>;
@group(0) @binding(3) var<storage, read> dout: array<Value>;
@group(0) @binding(4) var<storage, read_write> dinputs: array<Value>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let units = params.channels / LANES;
    let row = index / units;
    let unit = index - row * units;
    if row >= params.rows { return; }
    let ld = params.ld / LANES;
    let ld_out = params.ld_out / LANES;
    var du = Value(0.0);
    for (var distance = 0u; distance < min(params.taps, params.rows - row); distance++) {
        let later = row + distance;
        // A row that is nearer to the start of its sequence belongs to another one, as do all rows behind it.
        if positions[later] < distance { break; }
#if GATED
        du += tap(unit * LANES, distance) * dout[later * ld_out + unit] * inputs[later * ld + units + unit];
#else
        du += tap(unit * LANES, distance) * dout[later * ld_out + unit];
#end
    }
    let at = row * ld + unit;
#if GATED
    var y = Value(0.0);
    for (var distance = 0u; distance < min(params.taps, min(positions[row], row) + 1u); distance++) {
        y += tap(unit * LANES, distance) * value_at(row - distance, unit);
    }
    dinputs[at] = du * inputs[at + 2u * units];
    dinputs[at + units] = dout[row * ld_out + unit] * y;
    dinputs[at + 2u * units] = du * inputs[at];
#else
    dinputs[at] = du;
#end
}
