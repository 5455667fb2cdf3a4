//! Formats sizes, paths and tables, and parses sizes.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use loraine::gpu::OperationShare;
pub use loraine::gpu::readable_bytes as bytes;

/// Formats a time in whole seconds: `12 s`, `5 min 03 s`, `2 h 05 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// Joins names: `a`, `a and b`, `a, b and c`.
pub fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Prints `text` after a label of 8 columns. On a terminal it is broken between words, and its further lines are indented.
pub fn print_labeled(label: &str, text: &str) {
    let columns = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    let width = columns.filter(|_| std::io::stdout().is_terminal()).map_or(usize::MAX, |columns| columns.max(40) - 9);
    for (i, line) in broken(text, width).iter().enumerate() {
        let label = if i == 0 { label } else { "" };
        out!("{label:<7} {line}");
    }
}

/// Breaks `text` into lines of at most `width` characters, where its words allow it.
fn broken(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// True if standard output is a terminal and `NO_COLOR` is not set (no-color.org).
pub fn colored() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Returns `text` with every control character but line breaks and tabs written as `\u{1b}`, so that a text from a file or a model
/// cannot move the cursor, change the title or type into the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Like [`printable`] for a line of our own: its colors stay, and what is escaped is valid in the strings of a JSON object too.
pub fn harmless(line: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !line.contains(acts) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 8);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let color = color_length(rest);
        if color > 0 {
            shown.push_str(&rest[..color]);
            rest = &rest[color..];
            continue;
        }
        match acts(c) {
            true => shown += &format!("\\u{:04x}", u32::from(c)),
            false => shown.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(shown)
}

/// Number of bytes of the color sequence that `text` begins with, or 0.
fn color_length(text: &str) -> usize {
    let Some(numbers) = text.strip_prefix("\x1b[") else { return 0 };
    let length = numbers.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if numbers[length..].starts_with('m') { "\x1b[".len() + length + 1 } else { 0 }
}

/// Formats a path for a shell command, with quotes where the shell needs them.
pub fn shell_word(path: &Path) -> String {
    shell_text(&path.display().to_string())
}

/// Formats a text for a shell command, with quotes where the shell needs them.
pub fn shell_text(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./\\:@+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Formats GPU time per operation as a table, in the given order; every line ends in a line break.
pub fn profile_table(operations: &[OperationShare]) -> String {
    let mut table = format!("{:<28} {:>10} {:>12} {:>7}\n", "operation", "dispatches", "ms", "share");
    for OperationShare { operation, dispatches, ms, share } in operations {
        table += &format!("{operation:<28} {dispatches:>10} {ms:>12.2} {:>6.1}%\n", 100.0 * share);
    }
    table
}

/// Below it, a number without a unit counts gigabytes: nobody means so few bytes.
const FEWEST_BYTES: f64 = 1e6;

/// Parses `12GB`, `500MB`, `8GiB`, `12` (GB) or, from a million on, plain bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let parsed = number.parse::<f64>().map_err(|_| "write a number and a unit, for example 12GB".to_owned())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" if parsed < FEWEST_BYTES => 1e9,
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("`{unit}` is no unit of memory; write for example 12GB, 500MB or 8GiB")),
    };
    Ok((parsed * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_table_with_a_heading() {
        let share =
            |operation: &str, ms, share| OperationShare { operation: operation.to_owned(), dispatches: 3, ms, share };
        let table = profile_table(&[share("linear", 7.5, 0.75), share("add", 2.5, 0.25)]);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        let heading = ["operation", "dispatches", "ms", "share"];
        assert_eq!(lines, [heading, ["linear", "3", "7.50", "75.0%"], ["add", "3", "2.50", "25.0%"]]);
    }

    #[test]
    fn control_characters_are_shown_and_colors_of_lines_stay() {
        assert_eq!(printable("a\tb\nc ü"), "a\tb\nc ü");
        assert_eq!(printable("\x1b]0;x\x07\r\u{9b}2J\x7f"), r"\u{1b}]0;x\u{7}\u{d}\u{9b}2J\u{7f}");
        assert_eq!(printable("\x1b[31mred"), r"\u{1b}[31mred");
        assert_eq!(harmless("\x1b[1;32mgood\x1b[0m \x1b[2J\x1b["), "\x1b[1;32mgood\x1b[0m \\u001b[2J\\u001b[");
        let object = serde_json::json!({ "text": "\x1b[2J \u{9b}" });
        let line = harmless(&object.to_string()).into_owned();
        assert!(!line.contains(char::is_control), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), object);
    }

    #[test]
    fn times_names_and_lines_are_written_for_people() {
        let times = [0, 59, 60, 303, 3600, 100_000].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(times, ["0 s", "59 s", "1 min 00 s", "5 min 03 s", "1 h 00 min", "27 h 46 min"]);
        assert_eq!([listed(&["a"]), listed(&["a", "b"]), listed(&["a", "b", "c"])], ["a", "a and b", "a, b and c"]);
        assert_eq!(broken("one two three", 7), ["one two", "three"]);
        assert_eq!(broken("incomprehensible words", 7), ["incomprehensible", "words"]);
    }

    #[test]
    fn memory_sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("12GB"), Ok(12_000_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!((parse_bytes("12"), parse_bytes("0.5")), (Ok(12_000_000_000), Ok(500_000_000)));
        assert_eq!((parse_bytes("4096 B"), parse_bytes("2000000")), (Ok(4096), Ok(2_000_000)));
        assert!(parse_bytes("12 parsecs").is_err() && parse_bytes("GB").is_err());
    }
}
