// SiLU, f(e) = e s with s = sigmoid(e). Its slope is f'(e) = s (1 + e (1 - s)).

// The weight w of f(e) = e w.
fn activation_weight(e: vec4<f32>) -> vec4<f32> {
    return sigmoid(e);
}

// d f'(e), where w is the weight of e.
fn times_slope(d: vec4<f32>, e: vec4<f32>, w: vec4<f32>) -> vec4<f32> {
    return d * w * (1.0 + e * (1.0 - w));
}
