// The parts of a gated short convolution that its kernels share. A row of `inputs` holds B, C and X, a third each; an invocation has
// LANES neighboring channels of one row, as one value of type Value.

// The weight of the row `distance` rows back.
fn tap(channel: u32, distance: u32) -> Value {
    let at = channel * params.taps + params.taps - 1u - distance;
#if QUADS
    let step = params.taps;
    return vec4<f32>(weights[at], weights[at + step], weights[at + 2u * step], weights[at + 3u * step]);
#else
    return weights[at];
#end
}

// B X, which the convolution reads.
fn product_at(row: u32, unit: u32) -> Value {
    let at = row * (params.ld / LANES) + unit;
    return inputs[at] * inputs[at + 2u * (params.channels / LANES)];
}
