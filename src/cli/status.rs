//! The line at the bottom of a terminal that says what the program is doing, with a clock that never rests.

use std::collections::HashSet;
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use loraine::train::event::Phase;

use super::show::{bytes, duration};

/// The columns of a terminal that does not tell its size.
const COLUMNS: usize = 80;
/// The time between two drawings.
const TICK: Duration = Duration::from_millis(200);
/// A step that takes longer shows its micro-batches.
const SLOW_STEP: Duration = Duration::from_secs(2);

/// The counts of a phase.
#[derive(Clone, Copy)]
pub enum Count {
    Items(usize, usize),
    Bytes(u64, u64),
}

/// The results of a run so far.
#[derive(Clone, Copy)]
pub struct Training {
    pub step: usize,
    pub steps: usize,
    pub loss: f64,
    pub smoothed: f64,
    pub tokens_per_s: f64,
    /// The time that the remaining steps will take.
    pub left: Duration,
}

/// What the line shows.
struct Shown {
    phase: String,
    since: Instant,
    count: Option<Count>,
    /// Shown in place of the phase while steps are made: the results, and the moment when they came.
    training: Option<(Training, Instant)>,
}

enum Target {
    Terminal(ProgressBar),
    /// Each phase once, as a line.
    Lines(HashSet<String>),
    Nowhere,
}

/// One line on standard error. A thread draws it on a terminal; elsewhere each phase is a line of its own.
pub struct StatusLine {
    shown: Arc<Mutex<Shown>>,
    target: Target,
}

impl StatusLine {
    /// A line that shows nothing until the first phase; never anything with `silent`.
    pub fn new(silent: bool) -> Self {
        let shown = Shown { phase: String::new(), since: Instant::now(), count: None, training: None };
        let shown = Arc::new(Mutex::new(shown));
        let target = match std::io::stderr().is_terminal() {
            _ if silent => Target::Nowhere,
            true => Target::Terminal(drawn(shown.clone())),
            false => Target::Lines(HashSet::new()),
        };
        Self { shown, target }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.target, Target::Terminal(_))
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what the program is about to do. The clock starts anew where the phase is another one.
    pub fn phase(&mut self, phase: &str, count: Option<Count>) {
        let mut shown = self.lock();
        (shown.count, shown.training) = (count, None);
        if shown.phase == phase {
            return;
        }
        (shown.phase, shown.since) = (phase.to_owned(), Instant::now());
        drop(shown);
        match &mut self.target {
            Target::Terminal(bar) => bar.tick(),
            Target::Lines(known) => {
                if known.insert(phase.to_owned()) {
                    eprintln!("{phase} ...");
                }
            }
            Target::Nowhere => {}
        }
    }

    /// Shows the bytes of the model that are loaded.
    pub fn loading(&mut self, done: u64, total: u64) {
        self.phase("loading the model", Some(Count::Bytes(done, total)));
    }

    /// Shows the work of a run or of an evaluation.
    pub fn work(&mut self, phase: Phase) {
        let count = phase.progress().map(|(done, total)| Count::Items(done, total));
        match phase {
            Phase::Preparing => self.phase("preparing the device", None),
            Phase::Compiling { .. } => self.phase("compiling kernels", count),
            Phase::Evaluating { .. } => self.phase("evaluating", count),
            Phase::Step { step, .. } => self.phase(&format!("step {step}"), count),
            Phase::Saving => self.phase("saving", None),
        }
    }

    /// Shows the results of a run, and the micro-batches of the step at hand in `count`.
    pub fn training(&mut self, training: Training, count: Option<Count>) {
        let mut shown = self.lock();
        shown.phase.clear();
        shown.count = count;
        let came = match shown.training {
            Some((before, came)) if before.step == training.step => came,
            _ => Instant::now(),
        };
        shown.training = Some((training, came));
    }

    /// Prints with `print` above the line.
    pub fn above(&self, print: impl FnOnce()) {
        match &self.target {
            Target::Terminal(bar) => bar.suspend(print),
            Target::Lines(_) | Target::Nowhere => print(),
        }
    }

    /// Takes the line away until the next phase.
    pub fn clear(&mut self) {
        let mut shown = self.lock();
        shown.phase.clear();
        shown.training = None;
        drop(shown);
        if let Target::Terminal(bar) = &self.target {
            // Takes the old line away at once; a tick may be left out as one of too many.
            bar.suspend(|| ());
        }
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        if let Target::Terminal(bar) = &self.target {
            bar.finish_and_clear();
        }
    }
}

/// A bar that a thread draws.
fn drawn(shown: Arc<Mutex<Shown>>) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{line}") {
        let line = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let frames = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
            let frame = frames[(state.elapsed().as_millis() / TICK.as_millis()) as usize % frames.len()];
            let _ = out.write_str(&line(&shown, frame, columns()));
        };
        bar.set_style(style.with_key("line", line));
    }
    bar.enable_steady_tick(TICK);
    bar
}

/// The columns of the terminal on standard error.
fn columns() -> usize {
    terminal_size::terminal_size_of(std::io::stderr()).map_or(COLUMNS, |(width, _)| usize::from(width.0))
}

/// The line in at most `columns` columns less one, so that no terminal wraps it.
fn line(shown: &Shown, frame: char, columns: usize) -> String {
    let width = columns.saturating_sub(1);
    let items = |count: Option<Count>| match count {
        Some(Count::Items(done, total)) if total > 1 => Some((done, total)),
        _ => None,
    };
    let parts: Vec<(u8, String)> = match &shown.training {
        _ if width < 2 => return String::new(),
        None if shown.phase.is_empty() => return String::new(),
        None => {
            let count = match shown.count {
                Some(Count::Bytes(done, total)) => Some(format!("{} of {}", bytes(done), bytes(total))),
                count => items(count).map(|(done, total)| format!("{done} of {total}")),
            };
            let elapsed = duration(shown.since.elapsed());
            let parts = [Some((3, shown.phase.clone())), count.map(|count| (1, count)), Some((2, elapsed))];
            parts.into_iter().flatten().collect()
        }
        Some((training, came)) => {
            let Training { step, steps, loss, smoothed, tokens_per_s, left } = training;
            let waited = came.elapsed();
            let left = left.saturating_sub(waited).max(Duration::from_secs(1));
            let part = items(shown.count).filter(|_| waited > SLOW_STEP && step < steps);
            let parts = [
                Some((9, format!("step {step}/{steps}"))),
                part.map(|(done, total)| (3, format!("({} of {total} of the next)", done + 1))),
                Some((8, format!("loss {loss:.4}"))),
                Some((4, format!("smoothed {smoothed:.4}"))),
                Some((5, format!("{tokens_per_s:.0} tokens/s"))),
                (step < steps).then(|| (7, format!("{} left", duration(left)))),
            ];
            parts.into_iter().flatten().collect()
        }
    };
    let text = fitted(parts, width - 2);
    let share = shown.training.map(|(training, _)| training.step as f64 / training.steps.max(1) as f64);
    let room = (width - 2).saturating_sub(text.chars().count() + 2);
    match share {
        Some(share) if room >= 10 => format!("{frame} {}  {text}", bar(share, room.min(24))),
        _ => format!("{frame} {text}"),
    }
}

/// Joins the parts, without those of the lowest priority where not all of them fit into `width` columns.
fn fitted(mut parts: Vec<(u8, String)>, width: usize) -> String {
    loop {
        let text = parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join("  ");
        let least = parts.iter().enumerate().min_by_key(|(_, (priority, _))| *priority).map(|(at, _)| at);
        match least {
            Some(at) if text.chars().count() > width && parts.len() > 1 => drop(parts.remove(at)),
            _ => return text.chars().take(width).collect(),
        }
    }
}

/// A bar of `width` columns, filled by `share`.
fn bar(share: f64, width: usize) -> String {
    let filled = ((share * width as f64).round() as usize).min(width);
    format!("{}{}", "█".repeat(filled), "░".repeat(width - filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, count: Option<Count>) -> Shown {
        Shown { phase: name.to_owned(), since: Instant::now(), count, training: None }
    }

    #[test]
    fn a_phase_has_its_counts_and_a_clock() {
        let text = line(&phase("compiling kernels", Some(Count::Items(3, 40))), '*', 80);
        assert_eq!(text, "* compiling kernels  3 of 40  0 s");
        let text = line(&phase("loading the model", Some(Count::Bytes(1_500_000, 270_000_000))), '*', 80);
        assert_eq!(text, "* loading the model  1.50 MB of 270 MB  0 s");
        assert_eq!(line(&phase("step 1 of 3", Some(Count::Items(0, 1))), '*', 80), "* step 1 of 3  0 s");
        assert_eq!(line(&phase("", None), '*', 80), "");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let training = Training {
            step: 12345,
            steps: 67890,
            loss: 12.3456,
            smoothed: 12.3456,
            tokens_per_s: 123_456.0,
            left: Duration::from_secs(100_000),
        };
        let mut shown = phase("", Some(Count::Items(3, 16)));
        for (training, parts) in [
            (training, &["step 12345/67890", "27 h 46 min left", "loss 12.3456"][..]),
            (Training { step: 67890, ..training }, &["step 67890/67890", "123456 tokens/s"]),
            (Training { step: 1, steps: 3, ..training }, &["smoothed 12.3456"]),
        ] {
            shown.training = Some((training, Instant::now()));
            for columns in 0..200 {
                assert!(line(&shown, '*', columns).chars().count() < columns.max(1), "{columns}");
            }
            let text = line(&shown, '*', 80);
            for part in parts {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(!text.contains(" 0 s left") && (training.step < training.steps) == text.contains("left"), "{text}");
        }
        let narrow = line(&shown, '*', 30);
        assert!(narrow.contains("step 1/3") && narrow.contains("loss") && !narrow.contains("smoothed"), "{narrow}");
    }
}
