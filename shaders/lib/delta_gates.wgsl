// The gates of the gated delta rule, from their raw values.

// The constant under the roots that give queries and keys their length.
const EPS = 1e-6;

fn logistic(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-max(x, -87.0)));
}

// The logarithm of the decay: -exp(a_log) softplus(x).
fn log_decay(x: f32, a_log: f32) -> f32 {
    let e = exp(-abs(x));
    // log(1 + e) rounds small e away.
    let log1p = select(log(1.0 + e), e * (1.0 - e * (0.5 - e * 0.33333333)), e < 0.01);
    return -exp(a_log) * (max(x, 0.0) + log1p);
}
