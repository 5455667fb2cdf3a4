// Decodes rows first .. first+rows of a weight into an f32 panel that linear_rows reads: contracted index k by output column,
// which is k by n in the forward direction and n by k for the input gradient.

struct Params { first: u32, rows: u32, in_features: u32, depth: u32 }

@group(0) @binding(0) var<storage, read_write> panel: array<f32>;

@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(WG_SIZE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
    let index = (group.x + group.y * groups.x) * WG_SIZE + lane;
    let quads = (params.in_features + 3u) / 4u;
    if index >= quads * params.rows { return; }
    if FORWARD {
        // Neighboring lanes take neighboring rows, which lie side by side in the panel.
        let row = index % params.rows;
        let k = (index / params.rows) * 4u;
        let value = weight4(params.first + row, k, params.in_features);
        let count = min(4u, params.in_features - k);
        for (var i = 0u; i < count; i++) { panel[panel_index(k + i, row, params.depth)] = value[i]; }
    } else {
        let row = index / quads;
        let k = (index % quads) * 4u;
        let value = weight4(params.first + row, k, params.in_features);
        // The panel's padding may be written: it is never read as a value.
        let at = panel_index(row, k, params.depth);
        panel[at] = value.x;
        panel[at + 1u] = value.y;
        panel[at + 2u] = value.z;
        panel[at + 3u] = value.w;
    }
}
