// Double quantization: block scales as 8-bit codes. `nested` holds the 256 code values, the offset, then one scale per 256 blocks.

fn absmax_of(block: u32) -> f32 {
    let code = (absmax[origin.absmax + block / 4u] >> ((block % 4u) * 8u)) & 255u;
    return nested[origin.nested + code] * nested[origin.nested + 257u + block / 256u] + nested[origin.nested + 256u];
}
