// The argument is bounded so that the exponential stays finite; below the bound the result is under 2e-38 either way.
fn sigmoid(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-max(x, vec4<f32>(-87.0))));
}
