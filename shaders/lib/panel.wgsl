// The layout of a decoded panel: strips of PANEL_COLS columns, each with its contracted index outermost, so that a workgroup of
// linear_rows walks through its strip in one direction. `depth` counts the rows of the panel, LoRA's included.

fn panel_index(k: u32, col: u32, depth: u32) -> u32 {
    return ((col / PANEL_COLS) * depth + k) * PANEL_COLS + col % PANEL_COLS;
}
