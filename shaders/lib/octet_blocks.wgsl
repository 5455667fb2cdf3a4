// A frozen weight in the integer codes of GGUF's blocks, read eight consecutive elements of a row at a time, with what their block has.

@group(0) @binding(1) var<storage, read> weight: array<Codes>;
@group(0) @binding(2) var<storage, read> absmax: array<OfBlock>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

struct Packed { codes: Codes, of_block: OfBlock }

fn packed(index: u32) -> Packed {
    return Packed(weight[index / 8u], absmax[index / QUANT_BLOCK]);
}

// The quad with the element `at` of the elements that `packed` has read.
fn quad(octet: Packed, at: u32) -> vec4<f32> {
#if BYTES
    let values = codes(select(octet.codes.x, octet.codes.y, at % 8u >= 4u));
#else
    let values = codes(octet.codes >> (at % 8u / 4u * 16u));
#end
#if MINIMUM
    return values * octet.of_block.x - octet.of_block.y;
#else
    return values * octet.of_block;
#end
}
