// A frozen weight in the integer codes of GGUF's blocks, the first in the lowest bits, with a scale in f32 for each QUANT_BLOCK elements,
// and a minimum after it with MINIMUM. A product of scale and code fits the 24 bits of f32, so that a fused subtraction changes no bit.

const PER_WORD = 32u / CODE_BITS;

fn of_block_values(values: vec4<f32>, block: u32) -> vec4<f32> {
#if MINIMUM
    let at = origin.absmax + 2u * block;
    return values * bitcast<f32>(absmax[at]) - bitcast<f32>(absmax[at + 1u]);
#else
    return values * bitcast<f32>(absmax[origin.absmax + block]);
#end
}

fn load_float4(index: u32) -> vec4<f32> {
    let word = weight[origin.weight + index / PER_WORD] >> (index % PER_WORD * CODE_BITS);
    return of_block_values(codes(word), index / QUANT_BLOCK);
}

fn load_float(index: u32) -> f32 {
    return load_float4(index).x;
}
