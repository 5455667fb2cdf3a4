// Rows of logits as a loss reads them, and the way of its gradient through their range.

// The value of columns beyond the last one: below any logit, with an exponential of 0.
const LOWEST: f32 = -1e30;

fn columns_of(quad: u32) -> vec4<u32> {
    return 4u * quad + vec4<u32>(0u, 1u, 2u, 3u);
}

fn load(base: u32, quad: u32) -> vec4<f32> {
    return select(vec4<f32>(LOWEST), shown_logits(logits[base + quad]), columns_of(quad) < vec4<u32>(params.cols));
}

// 1 in the column of the label.
fn one_hot(quad: u32, label: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), vec4<f32>(1.0), columns_of(quad) == vec4<u32>(label));
}

// The gradient of logits from that of the shown ones. Columns beyond the last one have no slope.
fn through_range(base: u32, quad: u32, gradient: vec4<f32>) -> vec4<f32> {
    if SCALED || CAPPED {
        let slope = logits_slope(logits[base + quad]);
        return select(vec4<f32>(0.0), gradient * slope, columns_of(quad) < vec4<u32>(params.cols));
    }
    return gradient;
}
