// AdamW with moments in 8 bits over a flat range: one invocation per block of 256 elements, without barriers. The moments are
// computed twice: first to find the new scale, then to store them by it.

fn table(at: u32) -> f32 { return tables[at]; }

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let block = (group.x + group.y * groups.x) * WG_SIZE + lane;
    if block >= params.blocks || state.finite == 0.0 { return; }
    let scale = scales[block];
    let end = min(block * 64u + 64u, params.quads);
    var largest = vec2<f32>(0.0);
    for (var at = block * 64u; at < end; at++) {
        let g = grads[at] * state.clip;
        let m = first_moment(decoded(SIGNED, first_codes[at], scale.x), g);
        let v = second_moment(decoded(UNSIGNED, second_codes[at], scale.y), g);
        largest = max(largest, vec2<f32>(largest_of(m), largest_of(v)));
    }
    for (var at = block * 64u; at < end; at++) {
        let g = grads[at] * state.clip;
        let m = first_moment(decoded(SIGNED, first_codes[at], scale.x), g);
        let v = second_moment(decoded(UNSIGNED, second_codes[at], scale.y), g);
        values[at] = stepped(values[at], m, v);
        first_codes[at] = encoded(SIGNED, m, largest.x);
        second_codes[at] = encoded(UNSIGNED, v, largest.y);
    }
    scales[block] = largest;
}
