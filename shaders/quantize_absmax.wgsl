// Double quantization of the block scales: one invocation per 256 scales, four 8-bit codes in a word, see quant/nested.rs.

struct Params { count: u32, nested_blocks: u32 }

@group(0) @binding(0) var<storage, read> absmax: array<f32>;
@group(0) @binding(1) var<storage, read> code_map: array<u32>;
@group(0) @binding(2) var<storage, read_write> nested: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;

@group(1) @binding(0) var<uniform> params: Params;

// The count of first steps that are at most `step`.
fn code_of(step: u32) -> u32 {
    var low = 0u;
    var high = 255u;
    while low < high {
        let middle = (low + high) / 2u;
        if code_map[256u + middle] <= step { low = middle + 1u; } else { high = middle; }
    }
    return low;
}

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let block = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if block >= params.nested_blocks { return; }
    let offset = nested[256];
    let first = block * 256u;
    let count = min(256u, params.count - first);
    var largest = 0.0;
    for (var i = 0u; i < count; i++) { largest = max(largest, abs(absmax[first + i] - offset)); }
    nested[257u + block] = largest;
    let inverse = 1.0 / largest;
    for (var word = 0u; word < (count + 3u) / 4u; word++) {
        var packed = 0u;
        for (var i = 0u; i < 4u; i++) {
            let at = word * 4u + i;
            if at < count && largest > 0.0 {
                let unit = (clamp((absmax[first + at] - offset) * inverse, -1.0, 1.0) + 1.0) * 0.5;
                packed |= code_of(u32(fma(unit, 65535.0, 0.5))) << (i * 8u);
            }
        }
        codes[first / 4u + word] = packed;
    }
}
