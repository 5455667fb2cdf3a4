// The activation of gpt-oss, f(e) = e s with s = sigmoid(1.702 e). Its slope is f'(e) = s (1 + 1.702 e (1 - s)).

const SWISH_SCALE: f32 = 1.702;

// The weight w of f(e) = e w.
fn activation_weight(e: vec4<f32>) -> vec4<f32> {
    return sigmoid(SWISH_SCALE * e);
}

// d f'(e), where w is the weight of e.
fn times_slope(d: vec4<f32>, e: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    return d * w * (1.0 + SWISH_SCALE * e * (1.0 - w));
}
