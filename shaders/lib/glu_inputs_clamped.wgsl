// A gated linear unit of min(gate, 7) and 1 + clamp(up, -7, 7). No gradient passes beyond the bounds.

const GLU_LIMIT = vec4<f32>(7.0);

fn gate_input(e: vec4<f32>) -> vec4<f32> { return min(e, GLU_LIMIT); }
fn up_input(g: vec4<f32>) -> vec4<f32> { return 1.0 + clamp(g, -GLU_LIMIT, GLU_LIMIT); }
fn gate_gradient(d: vec4<f32>, e: vec4<f32>) -> vec4<f32> { return select(vec4<f32>(), d, e <= GLU_LIMIT); }
fn up_gradient(d: vec4<f32>, g: vec4<f32>) -> vec4<f32> { return select(vec4<f32>(), d, abs(g) <= GLU_LIMIT); }
