//! The loss curve as a small SVG: the logged values, their moving average, the evaluations, and notes.

use std::fmt::Write;

use super::diagnosis::{Curves, skipped_sentence};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
/// Wide enough for the last values.
const RIGHT: f64 = 56.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 40.0;
/// Between the base lines of two texts.
const LINE: f64 = 14.0;
/// Characters of a line of notes.
const NOTE_COLUMNS: usize = 100;
/// Up to so many losses are drawn as points too.
const FEW_POINTS: usize = 3;

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

/// The picture of a run's losses; light or dark as the viewer prefers. Skipped steps are marked, and `notes` stand below the curves.
pub fn loss_svg(curves: &Curves, notes: &[String]) -> String {
    let finite = |points: &[(usize, f64)]| -> Vec<(usize, f64)> {
        points.iter().copied().filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (steps, evals) = (finite(&curves.steps), finite(&curves.evals));
    let axes = Axes::around(&steps, &evals, &curves.skipped);
    let skipped = (!curves.skipped.is_empty()).then(|| skipped_sentence(&curves.skipped));
    let lines: Vec<String> =
        notes.iter().chain(&skipped.filter(|_| notes.is_empty())).flat_map(|n| wrapped(n)).collect();
    let height = HEIGHT + LINE * lines.len() as f64;
    let mut svg = opening(height);
    axes.draw(&mut svg);
    for step in &curves.skipped {
        let (at, end) = (axes.x(*step as f64), HEIGHT - BOTTOM);
        let _ = writeln!(
            svg,
            "<line class=\"skipped\" stroke-dasharray=\"4 3\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{end}\"/>"
        );
    }
    let mean = smoothed(&steps);
    // Two evaluations would draw a straight line that nobody measured.
    for (class, width, points, shown) in
        [("raw", 1.0, &steps, true), ("mean", 2.0, &mean, steps.len() > 1), ("eval", 1.5, &evals, evals.len() > 2)]
    {
        if shown {
            let place = |(step, loss): &(usize, f64)| format!("{:.1},{:.1}", axes.x(*step as f64), axes.y(*loss));
            let points = points.iter().map(place).collect::<Vec<_>>().join(" ");
            let _ = writeln!(svg, "<polyline class=\"{class}\" stroke-width=\"{width}\" points=\"{points}\"/>");
        }
    }
    // A line of so few points is hard to see.
    let few = if steps.len() <= FEW_POINTS { &steps[..] } else { &[] };
    for (class, (step, loss)) in few.iter().map(|p| ("mean", p)).chain(evals.iter().map(|p| ("eval", p))) {
        let (x, y) = (axes.x(*step as f64), axes.y(*loss));
        let _ = writeln!(svg, "<circle class=\"{class}\" r=\"3\" cx=\"{x:.1}\" cy=\"{y:.1}\"/>");
    }
    legend(&mut svg, steps.len(), evals.len(), curves.skipped.len());
    end_values(&mut svg, &axes, mean.last(), evals.last());
    let middle = (LEFT + WIDTH - RIGHT) / 2.0;
    let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>", HEIGHT - 6.0);
    for (i, line) in lines.iter().enumerate() {
        let y = HEIGHT + LINE * i as f64 + 6.0;
        let _ = writeln!(svg, "<text class=\"note\" x=\"{LEFT}\" y=\"{y:.1}\">{line}</text>");
    }
    svg + "</svg>\n"
}

/// The opening tag, the styles and the paper.
fn opening(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<style>\n\
         .paper{{fill:#fff}} text{{fill:#333}} .grid{{stroke:#e4e4e4}} .raw{{stroke:#9db8dd}} .mean{{stroke:#1f5fbf}}\n\
         .eval{{stroke:#d9622b}} circle.eval,.value.eval{{fill:#d9622b}} circle.mean,.value.mean{{fill:#1f5fbf}}\n\
         .value{{stroke:none;font-weight:600}} polyline{{fill:none;stroke-linejoin:round}}\n\
         .skipped{{stroke:#c22}} .note{{fill:#b00020}}\n\
         @media (prefers-color-scheme: dark){{.paper{{fill:#16181c}} text{{fill:#ccc}} .grid{{stroke:#333}}\n\
         .raw{{stroke:#3d5578}} .mean{{stroke:#7db0ff}} .eval{{stroke:#ff9a66}} circle.eval,.value.eval{{fill:#ff9a66}}\n\
         circle.mean,.value.mean{{fill:#7db0ff}} .skipped{{stroke:#f66}} .note{{fill:#ff8a80}}}}\n</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    )
}

/// The ranges of the picture.
struct Axes {
    last: f64,
    low: f64,
    high: f64,
}

impl Axes {
    fn around(steps: &[(usize, f64)], evals: &[(usize, f64)], skipped: &[usize]) -> Self {
        let all = || steps.iter().chain(evals);
        let last = all().map(|p| p.0).chain(skipped.iter().copied()).max().unwrap_or(1).max(1) as f64;
        let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // Equal losses would make an axis of one value: the scale shows at least a tenth of it.
        let margin = (0.05 * (high - low)).max(0.05 * high.abs() - 0.5 * (high - low)).max(1e-3);
        Self { last, low: low - margin, high: high + margin }
    }

    fn x(&self, step: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * step / self.last
    }

    fn y(&self, loss: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (self.high - loss) / (self.high - self.low)
    }

    fn draw(&self, svg: &mut String) {
        let (step_x, step_y) = (tick_step(self.last, 8.0).max(1.0), tick_step(self.high - self.low, 6.0));
        let digits = (-step_y.log10().floor()).max(0.0) as usize;
        let mut tick = (self.low / step_y).ceil() * step_y;
        while tick <= self.high {
            let at = self.y(tick);
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
        while tick <= self.last {
            let (x, y) = (self.x(tick), HEIGHT - BOTTOM + 18.0);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{tick:.0}</text>");
            tick += step_x;
        }
    }
}

/// Names what is drawn, from the counts of the points of each kind.
fn legend(svg: &mut String, steps: usize, evals: usize, skipped: usize) {
    let mut at = LEFT;
    for (class, name, shown) in [
        ("raw", "training loss", steps > 0),
        ("mean", "moving average", steps > 1),
        ("eval", "validation loss", evals > 0),
        ("skipped", "skipped step", skipped > 0),
    ] {
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
}

/// Writes the last values beside their points, a line apart where the two are close.
fn end_values(svg: &mut String, axes: &Axes, mean: Option<&(usize, f64)>, eval: Option<&(usize, f64)>) {
    let ends = [("mean", mean), ("eval", eval)];
    let [of_mean, of_evals] = ends.map(|(_, end)| end.map_or(f64::NAN, |(_, loss)| axes.y(*loss)));
    let apart = (LINE - (of_mean - of_evals).abs()).max(0.0) / 2.0;
    for ((class, end), (place, other)) in ends.into_iter().zip([(of_mean, of_evals), (of_evals, of_mean)]) {
        if let Some((step, loss)) = end {
            let below = place > other || (place == other && class == "mean");
            let place = if below { place + apart } else { place - apart };
            let (x, y) = (axes.x(*step as f64) + 8.0, place + 4.0);
            let _ = writeln!(svg, "<text class=\"value {class}\" x=\"{x:.1}\" y=\"{y:.1}\">{loss:.3}</text>");
        }
    }
}

/// Breaks a sentence into lines that fit into the picture.
fn wrapped(sentence: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in sentence.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= NOTE_COLUMNS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
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

    fn curves(steps: &[(usize, f64)], evals: &[(usize, f64)]) -> Curves {
        Curves { steps: steps.to_vec(), evals: evals.to_vec(), skipped: Vec::new() }
    }

    #[test]
    fn curves_stay_inside_the_picture() {
        let steps: Vec<(usize, f64)> = (1..=100).map(|s| (s, 3.0 + 2.0 / s as f64)).collect();
        let svg = loss_svg(&curves(&steps, &[(50, 3.5), (100, 3.2)]), &[]);
        let numbers =
            svg.split("points=\"").skip(1).flat_map(|part| part.split('"').next().unwrap_or("").split([' ', ',']));
        let numbers: Vec<f64> = numbers.filter_map(|n| n.parse().ok()).collect();
        assert!(numbers.len() >= 400 && numbers.iter().all(|n| (0.0..=WIDTH).contains(n)));
        assert_eq!(svg.matches("<circle").count(), 2);
        // Three evaluations make a line; a polyline that took its class's fill would be an area.
        let svg = loss_svg(&curves(&steps, &[(1, 5.0), (50, 3.5), (100, 3.2)]), &[]);
        assert!(svg.contains("<polyline class=\"eval\"") && !svg.contains("} .eval{stroke:#d9622b;fill"), "{svg}");
        assert!(svg.contains("validation loss") && svg.contains("moving average"), "{svg}");
        assert!(svg.contains(">3.200</text>"), "{svg}");
    }

    #[test]
    fn one_point_none_and_values_that_are_not_finite_still_make_a_picture() {
        for steps in [vec![], vec![(1, 2.0)], vec![(1, f64::NAN), (2, 1.0), (3, f64::INFINITY)]] {
            let svg = loss_svg(&curves(&steps, &[]), &[]);
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        // A single loss is a point on an axis of a few values, without an average.
        let svg = loss_svg(&curves(&[(1, 4.267)], &[]), &[]);
        assert_eq!(svg.matches("<circle class=\"mean\"").count(), 1);
        assert!(svg.contains(">4.3</text>") && !svg.contains("moving average"), "{svg}");
    }

    #[test]
    fn skipped_steps_and_notes_stand_in_the_picture() {
        let run = Curves { skipped: vec![2, 3], ..curves(&[(1, 2.0), (4, 2.5)], &[]) };
        let svg = loss_svg(&run, &[]);
        assert_eq!(svg.matches("<line class=\"skipped\" stroke-dasharray").count(), 2);
        assert!(svg.contains("skipped step<") && svg.contains("2 steps were skipped (steps 2, 3)<"), "{svg}");
        let note = format!("{} end", "a word and another".repeat(10));
        let svg = loss_svg(&run, std::slice::from_ref(&note));
        let lines: Vec<&str> = svg.lines().filter(|line| line.starts_with("<text class=\"note\"")).collect();
        assert_eq!(lines.len(), 2, "{svg}");
        assert!(svg.contains(&format!("height=\"{}\"", HEIGHT + 2.0 * LINE)) && !svg.contains("were skipped"), "{svg}");
    }
}
