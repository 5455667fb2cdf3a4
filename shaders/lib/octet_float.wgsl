// A frozen weight in f32, f16 or bf16, read 16 bytes of a row at a time, since few wide loads are the fastest.
// `quad` of the joined part unpacks the quad with the element `at` of the elements that `packed` has read.

@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> absmax: array<u32>;
@group(0) @binding(3) var<storage, read> nested: array<f32>;

alias Packed = vec4<u32>;

fn packed(index: u32) -> Packed {
    return weight[index / PACKED];
}
