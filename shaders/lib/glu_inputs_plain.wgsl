// A gated linear unit of gate and up as they are.

fn gate_input(e: vec4<f32>) -> vec4<f32> { return e; }
fn up_input(g: vec4<f32>) -> vec4<f32> { return g; }
fn gate_gradient(d: vec4<f32>, e: vec4<f32>) -> vec4<f32> { return d; }
fn up_gradient(d: vec4<f32>, g: vec4<f32>) -> vec4<f32> { return d; }
