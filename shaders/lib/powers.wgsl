// Powers of two, by which numbers are scaled without rounding.

// 2^exponent for -126 ..= 127.
fn power(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// value 2^exponent for -252 ..= 254, where the power itself may lie beyond f32.
fn scaled(value: vec4<f32>, exponent: i32) -> vec4<f32> {
    let half = exponent / 2;
    return value * power(half) * power(exponent - half);
}
