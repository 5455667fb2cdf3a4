// AdamW's formulas on four elements, see ops/adamw/mod.rs; the kernel declares `hyper`.

fn first_moment(m: vec4<f32>, g: vec4<f32>) -> vec4<f32> { return m + (g - m) * hyper.one_minus_beta1; }

fn second_moment(v: vec4<f32>, g: vec4<f32>) -> vec4<f32> { return v + (g * g - v) * hyper.one_minus_beta2; }

fn stepped(value: vec4<f32>, m: vec4<f32>, v: vec4<f32>) -> vec4<f32> {
    let step = m / (sqrt(v) / hyper.second_correction_root + hyper.eps);
    let decay = hyper.learning_rate * hyper.weight_decay;
    let rate = hyper.learning_rate / hyper.first_correction;
    return value - (value * decay + step * rate);
}
