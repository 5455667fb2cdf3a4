//! Draws a card's memory as one line of the terminal.

use loraine::gpu::Category;
use loraine::memory;

const WIDTH: usize = 64;

/// A letter for each category, so that the bar is readable without colors.
pub fn letter(category: Category) -> char {
    match category {
        Category::Weights => 'W',
        Category::QuantScales => 'S',
        Category::Adapter => 'A',
        Category::Gradients => 'G',
        Category::Optimizer => 'O',
        Category::KeptActivations => 'K',
        Category::Workspace => 'T',
        Category::KvCache => 'C',
        Category::Uploads => 'U',
    }
}

/// Draws the used categories in the ledger's order and the rest of `whole` bytes as dots; colored on a terminal.
pub fn drawn(categories: &[(Category, u64)], whole: u64) -> String {
    let mut cells: Vec<(char, u8)> = Vec::new();
    for (category, count) in memory::bar(categories, whole, WIDTH) {
        cells.extend(std::iter::repeat_n((letter(category), 41 + category as u8 % 6), count));
    }
    cells.truncate(WIDTH);
    let colored = super::show::colored();
    let used: String = cells
        .iter()
        .map(|(letter, color)| if colored { format!("\x1b[{color};97m{letter}\x1b[0m") } else { letter.to_string() })
        .collect();
    format!("[{used}{}]", ".".repeat(WIDTH - cells.len()))
}
