// Integer codes of GGUF's blocks. Those of blocks with a minimum have no sign.

// The four codes from the lowest bits of a word on. Signed conversion is the faster one on CPUs, and a shift to the right keeps the sign.
fn codes(word: u32) -> vec4<f32> {
    const UP = vec4<u32>(32u - CODE_BITS) - vec4(0u, 1u, 2u, 3u) * CODE_BITS;
#if MINIMUM
    return vec4<f32>(vec4<i32>((vec4<u32>(word) << UP) >> vec4<u32>(32u - CODE_BITS)));
#else
    return vec4<f32>(vec4<i32>(vec4<u32>(word) << UP) >> vec4<u32>(32u - CODE_BITS));
#end
}
