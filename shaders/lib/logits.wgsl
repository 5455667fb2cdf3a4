// Logits as the loss sees them: times params.logit_scale, and with CAPPED bounded to params.cap * tanh(z / params.cap).
// With e = exp(-2 |u|), tanh(u) is sign(u) (1 - e) / (1 + e) and its slope 4 e / (1 + e)^2. Neither overflows, and the slope keeps its
// digits where tanh is nearly 1.

fn scaled_logits(z: vec4<f32>) -> vec4<f32> {
    if SCALED { return z * params.logit_scale; }
    return z;
}

fn shown_logits(z: vec4<f32>) -> vec4<f32> {
    let scaled = scaled_logits(z);
    if CAPPED {
        let e = exp(-2.0 * abs(scaled / params.cap));
        return params.cap * sign(scaled) * (1.0 - e) / (1.0 + e);
    }
    return scaled;
}

// The slope of shown_logits at z.
fn logits_slope(z: vec4<f32>) -> vec4<f32> {
    var slope = vec4<f32>(1.0);
    if CAPPED {
        let e = exp(-2.0 * abs(scaled_logits(z) / params.cap));
        slope = 4.0 * e / ((1.0 + e) * (1.0 + e));
    }
    if SCALED { slope *= params.logit_scale; }
    return slope;
}
