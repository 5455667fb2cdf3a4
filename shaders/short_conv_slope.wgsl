// Short convolution with SiLU: from the gradient of the result, in place, that of the sum y before SiLU, which is computed again.

struct Params { rows: u32, channels: u32, ld: u32, ld_out: u32, taps: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> inputs: array<Value>;
@group(0) @binding(3) var<storage, read_write> dout: array<Value>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let units = params.channels / LANES;
    let row = index / units;
    let unit = index - row * units;
    if row >= params.rows { return; }
    var y = Value(0.0);
    for (var distance = 0u; distance < min(params.taps, min(positions[row], row) + 1u); distance++) {
        y += tap(unit * LANES, distance) * value_at(row - distance, unit);
    }
    let gate = gate_of(y);
    dout[row * (params.ld_out / LANES) + unit] *= gate * (1.0 + y * (1.0 - gate));
}
