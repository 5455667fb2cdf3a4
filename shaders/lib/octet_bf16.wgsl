fn quad(octet: Packed, at: u32) -> vec4<f32> {
    let words = select(octet.xy, octet.zw, at % 8u >= 4u);
    let even = bitcast<vec2<f32>>(words << vec2<u32>(16u));
    let odd = bitcast<vec2<f32>>(words & vec2<u32>(0xffff0000u));
    return vec4(even.x, odd.x, even.y, odd.y);
}
