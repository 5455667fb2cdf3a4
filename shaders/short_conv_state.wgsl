// The values of the last rows of a pass into the state, each at its position modulo the rows of the state.

struct Params { rows: u32, channels: u32, ld: u32, ld_out: u32, taps: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> inputs: array<Value>;
@group(0) @binding(3) var<storage, read_write> state: array<Value>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let units = params.channels / LANES;
    let from_last = index / units;
    let unit = index - from_last * units;
    let kept = params.taps - 1u;
    if from_last >= min(kept, params.rows) { return; }
    let row = params.rows - 1u - from_last;
    state[positions[row] % kept * (params.ld_out / LANES) + unit] = value_at(row, unit);
}
