// Double quantisation: block scales as 8-bit codes. `nested` holds the 256 code values, the offset, then one scale per 256 blocks.

fn absmax_of(block: u32) -> f32 {
    let code = (absmax[block / 4u] >> ((block % 4u) * 8u)) & 255u;
    return nested[code] * nested[257u + block / 256u] + nested[256];
}
