// Block scales as plain f32.

fn absmax_of(block: u32) -> f32 {
    return bitcast<f32>(absmax[origin.absmax + block]);
}
