fn quad(octet: Packed, at: u32) -> vec4<f32> {
    let words = select(octet.xy, octet.zw, at % 8u >= 4u);
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}
