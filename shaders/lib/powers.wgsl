// Powers of two, by which numbers are scaled without rounding.

// 2^exponent for -126 ..= 127.
fn power(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// Rounds to the 11 bits of an f16, to nearest, ties to even. A conversion to f16 itself may round in another way.
fn rounded(value: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(value);
    let odd = (bits >> vec4<u32>(13u)) & vec4<u32>(1u);
    return bitcast<vec4<f32>>((bits + vec4<u32>(0xfffu) + odd) & vec4<u32>(0xffffe000u));
}

// value * 2^exponent for -252 ..= 254, where the power itself may be beyond f32.
fn scaled(value: vec4<f32>, exponent: i32) -> vec4<f32> {
    let half = exponent / 2;
    return value * power(half) * power(exponent - half);
}
