// GELU in its tanh form, f(e) = e (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (e + 0.044715 e^3).
// (1 + tanh(u)) / 2 is sigmoid(2 u), which neither overflows nor cancels for negative u.
// The slope is f'(e) = w + e w (1 - w) 2 u' with w = sigmoid(2 u) and u' = sqrt(2 / pi) (1 + 3 * 0.044715 e^2).

// 2 sqrt(2 / pi)
const GELU_SCALE: f32 = 1.5957691216057308;
const GELU_CUBIC: f32 = 0.044715;

// Beyond this bound sigmoid(2 u) is 1, or below 2e-38. Without it the cube of a large value is infinite.
fn gelu_bounded(e: vec4<f32>) -> vec4<f32> {
    return clamp(e, vec4<f32>(-10.0), vec4<f32>(10.0));
}

// The weight w of f(e) = e w.
fn activation_weight(e: vec4<f32>) -> vec4<f32> {
    let c = gelu_bounded(e);
    return sigmoid(GELU_SCALE * c * (1.0 + GELU_CUBIC * c * c));
}

// d f'(e), where w is the weight of e.
fn times_slope(d: vec4<f32>, e: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    let c = gelu_bounded(e);
    return d * w * (1.0 + c * (1.0 - w) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * c * c));
}
