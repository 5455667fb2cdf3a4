// Rotary positions in place: each invocation rotates PAIRS neighboring pairs (i, i + half_dim) of one head, as one value of type Pairs;
// with INTERLEAVED the pair (2 i, 2 i + 1). Features of the head beyond 2 half_dim stay as they are.

struct Params { rows: u32, heads: u32, head_dim: u32, half_dim: u32, ld: u32, positions: u32 }

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(1) var<storage, read> turns: array<Turns>;
@group(0) @binding(2) var<storage, read_write> x: array<Pairs>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let per_head = params.half_dim / PAIRS;
    // Only two divisions: they cost software adapters more than the rest of the kernel.
    let of_heads = index / per_head;
    let at = index - of_heads * per_head;
    let row = of_heads / params.heads;
    let head = of_heads - row * params.heads;
    if row >= params.rows { return; }
    // The host makes positions of the table alone; the bound holds where it errs.
    let turn_at = min(positions[row], params.positions - 1u) * per_head + at;
#if QUADS
    let turns0 = turns[2u * turn_at];
    let turns1 = turns[2u * turn_at + 1u];
    let cosine = vec4<f32>(turns0.xz, turns1.xz);
    let turned = vec4<f32>(turns0.yw, turns1.yw);
#else
    let turn = turns[turn_at];
    let cosine = turn.x;
    let turned = turn.y;
#end
    let sine = select(turned, -turned, BACKWARD);
    let head_at = row * (params.ld / PAIRS) + head * (params.head_dim / PAIRS);
    let first_at = head_at + select(at, 2u * at, INTERLEAVED);
    let second_at = first_at + select(per_head, 1u, INTERLEAVED);
    let first = x[first_at];
    let second = x[second_at];
    x[first_at] = first * cosine - second * sine;
    x[second_at] = second * cosine + first * sine;
}
