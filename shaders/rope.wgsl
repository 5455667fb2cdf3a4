// Rotary positions in place: each invocation turns PAIRS neighbouring pairs (i, i + head_dim / 2) of one head.

struct Params { rows: u32, heads: u32, half_dim: u32, ld: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let per_head = params.half_dim / PAIRS;
    let pair = index % per_head * PAIRS;
    let head = index / per_head % params.heads;
    let row = index / (per_head * params.heads);
    if row >= params.rows { return; }
    let turn_at = positions[row] * params.half_dim + pair;
    let first_at = row * params.ld + head * 2u * params.half_dim + pair;
    let second_at = first_at + params.half_dim;
    #for i in 0..PAIRS
    {
        let turn = turns[turn_at + $iu];
        let sine = select(turn.y, -turn.y, BACKWARD);
        let first = x[first_at + $iu];
        let second = x[second_at + $iu];
        x[first_at + $iu] = first * turn.x - second * sine;
        x[second_at + $iu] = second * turn.x + first * sine;
    }
    #end
}
