// The common part of the attention kernels. Strides are in vec4s, and D4 is the head dimension in vec4s. An item is a pair (row, head
// of the group). Items of one key head are neighbors, so that a workgroup reads each key once for the whole group.

struct Params {
    rows: u32, keys: u32, heads: u32, kv_heads: u32,
    q_ld: u32, k_ld: u32, v_ld: u32, out_ld: u32,
    dout_ld: u32, dq_ld: u32, dk_ld: u32, dv_ld: u32,
    scale: f32,
    // scale * log2(e): the exponentials are powers of two.
    score_scale: f32,
    // The bound c of the scores, c tanh(s / c), times log2(e); read only with CAP.
    score_cap: f32,
    // The first of the rows, for the forward pass alone.
    first_row: u32,
}

@group(1) @binding(0) var<uniform> params: Params;

const LOWEST: f32 = -1e30;
const LN_2: f32 = 0.6931471805599453;
const LOG2_E: f32 = 1.4426950408889634;

#if CAP
// The score within its bound. Past 15 the hyperbolic tangent is 1 in f32; some drivers overflow on larger arguments.
fn capped(score: f32) -> f32 {
    return params.score_cap * tanh(clamp(score / params.score_cap, -15.0, 15.0));
}

fn capped_all(scores: vec4<f32>) -> vec4<f32> {
    return params.score_cap * tanh(clamp(scores / params.score_cap, vec4(-15.0), vec4(15.0)));
}

// The derivative of the bounded score by the score.
fn cap_slope(bounded: f32) -> f32 {
    let part = bounded / params.score_cap;
    return 1.0 - part * part;
}

fn cap_slopes(bounded: vec4<f32>) -> vec4<f32> {
    let part = bounded / params.score_cap;
    return 1.0 - part * part;
}

#end
fn joined(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    if b.x >= b.y { return a; }
    return vec2(min(a.x, b.x), max(a.y, b.y));
}
