// AdamW with moments in 8 bits over a flat range: one workgroup per block of 256 elements, four elements per invocation.

var<workgroup> near_tables: array<f32, 1024>;

fn table(at: u32) -> f32 { return near_tables[at]; }

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let block = group.x + group.y * groups.x;
    if block >= params.blocks || state.finite == 0.0 { return; }
    for (var i = lane; i < 1024u; i += WG_SIZE) { near_tables[i] = tables[i]; }
    workgroupBarrier();
    let at = block * WG_SIZE + lane;
    let inside = at < params.quads;
    var m = vec4<f32>(0.0);
    var v = vec4<f32>(0.0);
    if inside {
        let g = grads[at] * state.clip;
        let scale = scales[block];
        m = first_moment(decoded(SIGNED, first_codes[at], scale.x), g);
        v = second_moment(decoded(UNSIGNED, second_codes[at], scale.y), g);
        values[at] = stepped(values[at], m, v);
    }
    let largest = vec2<f32>(workgroup_max(largest_of(m), lane), workgroup_max(largest_of(v), lane));
    if inside {
        first_codes[at] = encoded(SIGNED, m, largest.x);
        second_codes[at] = encoded(UNSIGNED, v, largest.y);
    }
    if lane == 0u { scales[block] = largest; }
}
