// Elementwise kernels: one invocation per four consecutive columns of a row.

// The row of this invocation and its column counted in fours; rows run past the last one in the final workgroups.
fn quad_of(group: vec3<u32>, groups: vec3<u32>, lane: u32, cols: u32) -> vec2<u32> {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let quads = (cols + 3u) / 4u;
    return vec2<u32>(index / quads, index % quads);
}
