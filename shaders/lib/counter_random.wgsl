// Counter-based random bits; `draw` in dropout.rs is the same function on the host.

fn scramble(value: u32) -> u32 {
    var x = value;
    x = (x ^ (x >> 16u)) * 0x7feb352du;
    x = (x ^ (x >> 15u)) * 0x846ca68bu;
    return x ^ (x >> 16u);
}

fn draw(seed: u32, site: u32, index: u32) -> u32 {
    let key = scramble(seed + 0x9e3779b9u);
    return scramble(scramble(index ^ key) + scramble(site + key));
}
