//! The loss curve as a small SVG: the logged values, their running mean, and the evaluations.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
/// Wide enough for the last values.
const RIGHT: f64 = 56.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;
/// Between the base lines of two texts.
const LINE: f64 = 14.0;

/// The mean over a window around each point, a twentieth of the curve long.
fn smoothed(points: &[(usize, f64)]) -> Vec<(usize, f64)> {
    let reach = points.len() / 40;
    let mean = |i: usize| {
        let window = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(i, (step, _))| (*step, mean(i))).collect()
}

/// A step between axis labels that is 1, 2 or 5 times a power of ten and gives about `count` of them.
fn tick_step(span: f64, count: f64) -> f64 {
    let rough = (span / count).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let unit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|unit| unit * power >= rough);
    unit.unwrap_or(10.0) * power
}

/// The picture of (step, loss) pairs; light or dark as the viewer prefers.
pub fn loss_svg(steps: &[(usize, f64)], evals: &[(usize, f64)]) -> String {
    let finite = |points: &[(usize, f64)]| -> Vec<(usize, f64)> {
        points.iter().copied().filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (steps, evals) = (finite(steps), finite(evals));
    let all = || steps.iter().chain(&evals);
    let last = all().map(|p| p.0).max().unwrap_or(1).max(1) as f64;
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min).min(1e9);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max).max(low + 1e-3);
    let margin = 0.05 * (high - low);
    let (low, high) = (low - margin, high + margin);
    let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * step / last;
    let y = |loss: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<style>\n\
         .paper{{fill:#fff}} text{{fill:#333}} .grid{{stroke:#e4e4e4}} .raw{{stroke:#9db8dd}} .mean{{stroke:#1f5fbf}}\n\
         .eval{{stroke:#d9622b}} circle.eval,.value.eval{{fill:#d9622b}} .value.mean{{fill:#1f5fbf}}\n\
         .value{{stroke:none;font-weight:600}} polyline{{fill:none;stroke-linejoin:round}}\n\
         @media (prefers-color-scheme: dark){{.paper{{fill:#16181c}} text{{fill:#ccc}} .grid{{stroke:#333}}\n\
         .raw{{stroke:#3d5578}} .mean{{stroke:#7db0ff}} .eval{{stroke:#ff9a66}} circle.eval,.value.eval{{fill:#ff9a66}}\n\
         .value.mean{{fill:#7db0ff}}}}\n</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    let (step_x, step_y) = (tick_step(last, 8.0).max(1.0), tick_step(high - low, 6.0));
    let digits = (-step_y.log10().floor()).max(0.0) as usize;
    let mut tick = (low / step_y).ceil() * step_y;
    while tick <= high {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.digits$}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
        tick += step_y;
    }
    let mut tick = 0.0;
    while tick <= last {
        let at = HEIGHT - BOTTOM + 18.0;
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{at:.1}\" text-anchor=\"middle\">{tick:.0}</text>", x(tick));
        tick += step_x;
    }
    let mut line = |class: &str, width: f64, points: &[(usize, f64)]| {
        let points: Vec<String> = points.iter().map(|(s, l)| format!("{:.1},{:.1}", x(*s as f64), y(*l))).collect();
        let _ = writeln!(svg, "<polyline class=\"{class}\" stroke-width=\"{width}\" points=\"{}\"/>", points.join(" "));
    };
    line("raw", 1.0, &steps);
    let mean = smoothed(&steps);
    line("mean", 2.0, &mean);
    // Two points would draw a straight line that nobody measured.
    if evals.len() > 2 {
        line("eval", 1.5, &evals);
    }
    for (step, loss) in &evals {
        let _ = writeln!(svg, "<circle class=\"eval\" r=\"3\" cx=\"{:.1}\" cy=\"{:.1}\"/>", x(*step as f64), y(*loss));
    }
    let mut at = LEFT;
    for (class, name, shown) in
        [("raw", "loss", true), ("mean", "its running mean", true), ("eval", "held-out loss", !evals.is_empty())]
    {
        if shown {
            let (end, text) = (at + 18.0, at + 24.0);
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" stroke-width=\"2\" x1=\"{at}\" x2=\"{end}\" y1=\"14\" y2=\"14\"/>\
                 <text x=\"{text}\" y=\"18\">{name}</text>"
            );
            at = text + 7.0 * name.len() as f64 + 16.0;
        }
    }
    // The last values beside their points, a line apart where the two are close.
    let ends = [("mean", mean.last()), ("eval", evals.last())];
    let [of_mean, of_evals] = ends.map(|(_, end)| end.map_or(f64::NAN, |(_, loss)| y(*loss)));
    let apart = (LINE - (of_mean - of_evals).abs()).max(0.0) / 2.0;
    for ((class, end), (place, other)) in ends.into_iter().zip([(of_mean, of_evals), (of_evals, of_mean)]) {
        if let Some((step, loss)) = end {
            let below = place > other || (place == other && class == "mean");
            let place = if below { place + apart } else { place - apart };
            let _ = writeln!(
                svg,
                "<text class=\"value {class}\" x=\"{:.1}\" y=\"{:.1}\">{loss:.3}</text>",
                x(*step as f64) + 8.0,
                place + 4.0
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>\n</svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 6.0
    );
    svg
}

/// Draws the losses for a terminal: columns of blocks, `rows` high, with the highest and the lowest loss beside them.
pub fn loss_text(steps: &[(usize, f64)], columns: usize, rows: usize) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let losses: Vec<f64> = steps.iter().map(|(_, loss)| *loss).filter(|loss| loss.is_finite()).collect();
    let columns = columns.min(losses.len());
    let mean = |i: usize| {
        let part = &losses[i * losses.len() / columns..(i + 1) * losses.len() / columns];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..columns).map(mean).collect();
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut text = String::new();
    for row in (0..rows).rev() {
        let label = match row {
            _ if columns == 0 => String::new(),
            0 => format!("{low:.3}"),
            _ if row + 1 == rows => format!("{high:.3}"),
            _ => String::new(),
        };
        let mut line = format!("{label:>8} ");
        for value in &means {
            // The lowest still shows as the thinnest block.
            let eighths = 1.0 + (value - low) / (high - low).max(1e-12) * (8 * rows - 1) as f64;
            line.push(BLOCKS[(eighths - 8.0 * row as f64).round().clamp(0.0, 8.0) as usize]);
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_in_text_fall_as_the_losses_do() {
        let steps: Vec<(usize, f64)> = (0..100).map(|s| (s, 3.0 - 0.02 * s as f64)).collect();
        let text = loss_text(&steps, 20, 4);
        let rows: Vec<usize> = text.lines().map(|line| line.matches('█').count()).collect();
        assert!(text.contains("2.960") && text.contains("1.060"), "{text}");
        assert!(rows.len() == 4 && rows.is_sorted() && rows[0] < 6 && rows[3] > 13, "{text}");
        assert_eq!(loss_text(&[], 20, 4).lines().count(), 4);
        assert!(loss_text(&[(1, 2.0)], 20, 2).contains('▁'));
    }

    #[test]
    fn curves_stay_inside_the_picture() {
        let steps: Vec<(usize, f64)> = (1..=100).map(|s| (s, 3.0 + 2.0 / s as f64)).collect();
        let svg = loss_svg(&steps, &[(50, 3.5), (100, 3.2)]);
        let numbers =
            svg.split("points=\"").skip(1).flat_map(|part| part.split('"').next().unwrap_or("").split([' ', ',']));
        let numbers: Vec<f64> = numbers.filter_map(|n| n.parse().ok()).collect();
        assert!(numbers.len() >= 400 && numbers.iter().all(|n| (0.0..=WIDTH).contains(n)));
        assert_eq!(svg.matches("<circle").count(), 2);
        // Three evaluations make a line; a polyline that took its class's fill would be an area.
        let svg = loss_svg(&steps, &[(1, 5.0), (50, 3.5), (100, 3.2)]);
        assert!(svg.contains("<polyline class=\"eval\"") && !svg.contains("} .eval{stroke:#d9622b;fill"), "{svg}");
        assert!(svg.contains("held-out loss") && svg.contains(">3.200</text>"), "{svg}");
    }

    #[test]
    fn one_point_none_and_values_that_are_not_finite_still_make_a_picture() {
        for steps in [vec![], vec![(1, 2.0)], vec![(1, f64::NAN), (2, 1.0), (3, f64::INFINITY)]] {
            let svg = loss_svg(&steps, &[]);
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
