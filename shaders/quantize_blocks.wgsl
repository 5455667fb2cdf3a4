// 4-bit quantization: one invocation per block of QUANT_BLOCK elements, eight codes in a word, the
// first element in the high nibble of its byte.
// Elements are read from `weight` in the type it was stored in; `first_block` places a piece of a streamed tensor.

struct Params { blocks: u32, elements: u32, first_block: u32, min_absmax_bits: u32 }

@group(0) @binding(0) var<storage, read> weight: array<u32>;
// 15 bounds as f32 bits, then the index that each of the 16 intervals means.
@group(0) @binding(1) var<storage, read> code_table: array<u32>;
@group(0) @binding(2) var<storage, read_write> packed: array<u32>;
@group(0) @binding(3) var<storage, read_write> absmax: array<u32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let block = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if block >= params.blocks { return; }
    let first = block * QUANT_BLOCK;
    let count = min(QUANT_BLOCK, params.elements - first);
    var largest = 0.0;
    for (var i = 0u; i < count; i++) { largest = max(largest, abs(load_float(first + i))); }
    // bitsandbytes multiplies by the reciprocal in whole blocks and divides in a last, shorter one.
    let whole = count == QUANT_BLOCK;
    // Some adapters flush subnormal numbers. The scale of a zero block is subnormal: it is written by its bits, and never a divisor.
    let zero = largest == 0.0;
    let divisor = select(largest, 1.0, zero);
    let inverse = 1.0 / divisor;
    absmax[params.first_block + block] = select(bitcast<u32>(largest), params.min_absmax_bits, zero && !whole);
    for (var word = 0u; word < (count + 7u) / 8u; word++) {
        var codes = 0u;
        for (var i = 0u; i < 8u; i++) {
            let at = word * 8u + i;
            var scaled = 0.0;
            if at < count {
                let value = load_float(first + at);
                scaled = clamp(select(value / divisor, value * inverse, whole), -1.0, 1.0);
            }
            var interval = 0u;
            for (var b = 0u; b < 15u; b++) { interval += u32(bitcast<f32>(code_table[b]) < scaled); }
            codes |= code_table[15u + interval] << ((i / 2u) * 8u + (1u - i % 2u) * 4u);
        }
        packed[(params.first_block + block) * (QUANT_BLOCK / 8u) + word] = codes;
    }
}
