// The parts that the kernels of the short convolutions share: the gated one, where a row of `inputs` holds B, C and X, a third each,
// and the one with SiLU, whose rows are read as they are. An invocation has LANES neighboring channels of one row, as one value of
// type Value.

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

// The values that the convolution sums: B X where it is gated.
fn value_at(row: u32, unit: u32) -> Value {
    let at = row * (params.ld / LANES) + unit;
#if GATED
    return inputs[at] * inputs[at + 2u * (params.channels / LANES)];
#else
    return inputs[at];
#end
}

#if GATED
#else
// The factor of SiLU, sigmoid(y), with the bound of sigmoid.wgsl.
fn gate_of(y: Value) -> Value {
    return 1.0 / (1.0 + exp(-max(y, Value(-87.0))));
}
#end
