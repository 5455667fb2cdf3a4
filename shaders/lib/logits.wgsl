// Logits as the loss sees them: times params.logit_scale, and with CAPPED bounded to params.cap * tanh(z / params.cap).

// Some drivers compute tanh of large arguments as NaN; beyond 10 it is 1 in f32.
fn shown_logits(z: vec4<f32>) -> vec4<f32> {
    var v = z;
    if SCALED { v *= params.logit_scale; }
    if CAPPED { v = params.cap * tanh(clamp(v / params.cap, vec4<f32>(-15.0), vec4<f32>(15.0))); }
    return v;
}

// The slope of shown_logits by z, where it is `shown`.
fn logits_slope(shown: vec4<f32>) -> vec4<f32> {
    var slope = vec4<f32>(1.0);
    if CAPPED {
        let t = shown / params.cap;
        slope -= t * t;
    }
    if SCALED { slope *= params.logit_scale; }
    return slope;
}
