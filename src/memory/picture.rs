//! Draws estimates as an SVG: one bar for each method with its categories, against the memory of a card.

use std::fmt::Write;

use super::Estimate;
use crate::gpu::Category;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 16.0;
const BAR: f64 = 26.0;
const ROW: f64 = 62.0;
const TOP: f64 = 40.0;
/// The scale ends here, as a multiple of the card's memory; longer bars are cut.
const CLIPPED_AT: f64 = 1.5;

fn color(category: Category) -> &'static str {
    match category {
        Category::Weights => "#3b6fb6",
        Category::QuantScales => "#86aee0",
        Category::Adapter => "#2f9e6e",
        Category::Gradients => "#d9a441",
        Category::Optimizer => "#d9622b",
        Category::KeptActivations => "#8a63b8",
        Category::Workspace => "#9aa3ad",
        Category::KvCache => "#c75b8c",
        Category::Uploads => "#5c6670",
    }
}

/// Formats bytes as decimal gigabytes with two digits.
fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Escapes text for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Draws named `estimates` against a card of `card` bytes. Colors follow the viewer's light or dark mode.
pub fn svg(title: &str, estimates: &[(&str, &Estimate)], card: Option<u64>) -> String {
    let largest = estimates.iter().map(|(_, e)| e.total).chain(card).max().unwrap_or(1).max(1) as f64;
    // A bar far beyond the card would squeeze those that fit.
    let scale = card.map_or(largest, |card| largest.min(CLIPPED_AT * card as f64));
    let x = |bytes: f64| (WIDTH - 2.0 * LEFT) * bytes.min(scale) / scale;
    let used: Vec<Category> = Category::ALL
        .into_iter()
        .filter(|c| estimates.iter().any(|(_, e)| e.categories.iter().any(|(category, _)| category == c)))
        .collect();
    let legend_rows = used.len().div_ceil(4);
    let height = TOP + ROW * estimates.len() as f64 + 20.0 * legend_rows as f64 + 16.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<style>\n\
         .paper{{fill:#fff}} text{{fill:#333}} .free{{fill:#eef0f2}} .card{{stroke:#c22;stroke-dasharray:5 3}} .clipped{{fill:#fff;font-weight:600}}\n\
         @media (prefers-color-scheme: dark){{.paper{{fill:#16181c}} text{{fill:#ccc}} .free{{fill:#2a2e34}}}}\n</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(title)
    );
    for (row, (name, estimate)) in estimates.iter().enumerate() {
        let top = TOP + ROW * row as f64;
        let verdict = match (estimate.fits, card) {
            (Some(true), Some(card)) => format!(", fits into {}", gigabytes(card)),
            (Some(false), Some(card)) => format!(", does not fit into {}", gigabytes(card)),
            _ => String::new(),
        };
        let line = format!("{name}: {}{verdict}", gigabytes(estimate.total));
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text>", top + 12.0, escaped(&line));
        let y = top + 18.0;
        if let Some(card) = card {
            let width = x(card as f64);
            let _ =
                writeln!(svg, "<rect class=\"free\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{BAR}\"/>");
        }
        let mut from = 0.0;
        for (category, bytes) in &estimate.categories {
            let (at, width) = (LEFT + x(from), x(from + *bytes as f64) - x(from));
            let _ = writeln!(
                svg,
                "<rect x=\"{at:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{BAR}\" fill=\"{}\"><title>{} {}</title></rect>",
                color(*category),
                category.name(),
                gigabytes(*bytes)
            );
            from += *bytes as f64;
        }
        if estimate.total as f64 > scale {
            let (at, y) = (WIDTH - LEFT - 6.0, y + BAR / 2.0 + 4.0);
            let _ = writeln!(
                svg,
                "<text class=\"clipped\" x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"end\">goes on to {}</text>",
                gigabytes(estimate.total)
            );
        }
        if let Some(card) = card {
            let at = LEFT + x(card as f64);
            let (from, to) = (y - 3.0, y + BAR + 3.0);
            let _ = writeln!(
                svg,
                "<line class=\"card\" stroke-width=\"2\" x1=\"{at:.2}\" x2=\"{at:.2}\" y1=\"{from:.1}\" y2=\"{to:.1}\"/>"
            );
        }
    }
    for (i, category) in used.iter().enumerate() {
        let at = LEFT + (i % 4) as f64 * (WIDTH - 2.0 * LEFT) / 4.0;
        let y = TOP + ROW * estimates.len() as f64 + 20.0 * (i / 4) as f64 + 6.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            color(*category),
            at + 18.0,
            y + 11.0,
            category.name()
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::settings::Method;

    #[test]
    fn bars_are_as_long_as_their_bytes() {
        let estimate = |total: u64, fits| Estimate {
            method: Method::Qlora,
            total,
            categories: vec![(Category::Weights, total / 4), (Category::Workspace, total - total / 4)],
            trained_parameters: 1,
            layers: 1,
            kept_layers: 1,
            bf16_activations: false,
            fits: Some(fits),
            longest_seq_len: None,
        };
        let (small, large) = (estimate(4_000_000_000, true), estimate(16_000_000_000, false));
        let picture = svg("a <b>", &[("small", &small), ("large", &large)], Some(8_000_000_000));
        assert!(picture.contains("a &lt;b&gt;") && picture.contains("small: 4.00 GB, fits into 8.00 GB"));
        assert!(picture.contains("large: 16.00 GB, does not fit into 8.00 GB"));
        let widths: Vec<f64> = picture
            .split("width=\"")
            .skip(2)
            .filter_map(|part| part.split('"').next()?.parse().ok())
            .filter(|width| *width != 12.0 && *width != WIDTH && *width != 2.0)
            .collect();
        // The card and the two parts of each bar, with 688 pixels for 12 GB: the larger bar is cut there.
        assert_eq!(widths, [458.67, 57.33, 172.0, 458.67, 229.33, 458.67], "{picture}");
        assert_eq!(picture.matches("goes on to 16.00 GB").count(), 1, "{picture}");
        assert!(!svg("a", &[("large", &large)], None).contains("goes on"));
    }
}
