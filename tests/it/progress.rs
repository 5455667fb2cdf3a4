//! What a person sees of a run on a terminal of 80 by 24: a screen that never rests, and lines that fit.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::cli::{Shell, random_lines, texts, train_on};
use crate::common::{fixture, shared};
use nix::pty::{Winsize, openpty};

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// A screen and the time from the start at which it was first seen.
struct Frame {
    at: Duration,
    text: String,
}

/// Runs a command on a terminal of its own and records every screen that differs from the one before.
fn frames(shell: &Shell, args: &str) -> (Vec<Frame>, Duration) {
    let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).expect("a pseudo-terminal");
    let mut command = shell.command(args);
    let side = || Stdio::from(terminal.slave.try_clone().expect("a handle"));
    command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm");
    let nonzero = |count| std::num::NonZero::new(count).expect("a size above 0");
    let started = Instant::now();
    let mut child = command.spawn().expect("the program starts");
    // Only the program holds the terminal's other side now, so that reading ends with it.
    drop((command, terminal.slave));
    let (mut master, mut bytes) = (File::from(terminal.master), [0; 4096]);
    let mut screen = vt100::Parser::new(nonzero(ROWS), nonzero(COLUMNS), 0);
    let mut frames: Vec<Frame> = Vec::new();
    while let Ok(count @ 1..) = master.read(&mut bytes) {
        screen.process(&bytes[..count]);
        let text = screen.screen().contents();
        if frames.last().map_or(!text.trim().is_empty(), |last| last.text != text) {
            frames.push(Frame { at: started.elapsed(), text });
        }
    }
    let ended = started.elapsed();
    let status = child.wait().expect("an end");
    assert!(status.success(), "{}", frames.last().map_or("", |frame| &frame.text));
    (frames, ended)
}

/// The longest time for which the screen stood still, and where.
fn longest_rest(frames: &[Frame], ended: Duration) -> (Duration, &str) {
    let ends = frames.iter().skip(1).map(|frame| frame.at).chain([ended]);
    frames.iter().zip(ends).map(|(frame, end)| (end - frame.at, frame.text.as_str())).max().expect("a frame")
}

fn record(name: &str, frames: &[Frame]) {
    let text: String = frames
        .iter()
        .map(|Frame { at, text }| format!("---- {:.1} s\n{}\n", at.as_secs_f64(), text.trim_end()))
        .collect();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).expect("a file of frames");
    eprintln!("the frames are in {}", path.display());
}

#[test]
fn the_screen_never_rests_while_a_model_trains() {
    let Some(model) = shared("models/stories260K") else { return };
    let shell = Shell::new();
    // Steps of several seconds on a software adapter.
    let lines: Vec<String> = (0..300)
        .map(|i| format!("{{\"text\": \"{}\"}}\n", format!("Tom had a red ball {i}. He was happy. ").repeat(8)))
        .collect();
    shell.write("data.jsonl", lines.concat());
    let (frames, ended) = frames(
        &shell,
        &format!(
            "train --model {} --data data.jsonl --out run --steps 3 --batch-size 32 --grad-accum 3",
            model.display()
        ),
    );
    record("train-frames.txt", &frames);
    let first = &frames[0];
    assert!(first.at < Duration::from_secs(1), "nothing for {:?}: {}", first.at, first.text);
    let (rest, screen) = longest_rest(&frames, ended);
    assert!(rest < Duration::from_secs(3), "{rest:?} of\n{screen}");
    let seen = |part: &str| frames.iter().position(|frame| frame.text.contains(part));
    // The results of the last steps may come at once.
    let phases = ["reading the model's files", "evaluating", "step 1 of 3", "step 1/3"];
    let places = phases.map(|part| seen(part).unwrap_or_else(|| panic!("{part:?} was never on the screen")));
    assert!(places.is_sorted(), "{phases:?} at {places:?}");
    for frame in &frames {
        // A line that did not fit would go on in the first column of the next row, without a label.
        assert!(!frame.text.contains("  0 s left"), "{}", frame.text);
        assert!(frame.text.lines().filter(|line| line.contains("loss") && line.contains("left")).count() <= 1);
    }
    let last = &frames.last().expect("a frame").text;
    let clean = |start: &str| last.lines().any(|line| line.starts_with(start));
    assert!(clean("trained 3 steps in "), "the moving line is gone before the summary:\n{last}");
    for part in ["trained 3 steps in ", "validation loss ", "adapter run"] {
        assert!(last.contains(part), "{part:?} is not in\n{last}");
    }
    assert!(!last.contains("left"), "the moving line is gone at the end:\n{last}");
}

#[test]
fn no_screen_line_is_broken_between_columns() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(40, 96, 1));
    let (frames, _) = frames(&shell, &format!("{} --data data.jsonl --out run --steps 4", train_on("llama_tied")));
    let last = &frames.last().expect("a frame").text;
    assert!(last.contains("2 of 40 examples are held out for validation"), "{last}");
    for frame in &frames {
        for line in frame.text.lines().filter(|line| line.contains("step ")) {
            assert!(line.chars().count() < usize::from(COLUMNS), "{line:?}");
        }
    }
}

#[test]
fn each_phase_is_one_line_where_no_terminal_is() {
    let shell = Shell::new();
    shell.write("data.jsonl", random_lines(40, 96, 1));
    let output = shell.command(&format!("{} --data data.jsonl --out run --steps 3", train_on("llama_tied"))).output();
    let (_, phases) = texts(&output.expect("the program starts"));
    let want =
        ["reading the model's files and the data", "opening the GPU", "preparing the device", "loading the model"];
    let lines: Vec<&str> = phases.lines().collect();
    for (line, want) in lines.iter().zip(want) {
        assert_eq!(*line, format!("{want} ..."), "{phases}");
    }
    assert_eq!(lines.iter().filter(|line| **line == "evaluating ...").count(), 1, "{phases}");
    let eval = format!("eval --model {} --data data.jsonl", fixture("llama_tied").display());
    let (shown, phases) = texts(&shell.command(&eval).output().expect("the program starts"));
    assert!(shown.contains("\nloss ") && phases.contains("loading the model ..."), "{shown}{phases}");
}
