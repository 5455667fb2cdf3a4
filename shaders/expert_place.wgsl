// The third step of sorting pairs by expert: the slot of each pair, and the pair of each slot. One invocation per expert and part.

struct Params { experts: u32, pairs: u32, part: u32 }

@group(0) @binding(0) var<storage, read> chosen: array<u32>;
@group(0) @binding(1) var<storage, read> firsts: array<u32>;
@group(0) @binding(2) var<storage, read_write> slots: array<u32>;
@group(0) @binding(3) var<storage, read_write> pairs: array<u32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if index >= params.experts * PARTS { return; }
    let begin = index % PARTS * params.part;
    let end = min(begin + params.part, params.pairs);
    var slot = firsts[index];
    for (var i = begin; i < end; i++) {
        if chosen[i] == index / PARTS {
            slots[i] = slot;
            pairs[slot] = i;
            slot += 1u;
        }
    }
}
