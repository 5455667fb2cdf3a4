//! Formats sizes, paths and tables, and parses sizes.

use std::io::IsTerminal;
use std::path::Path;

use loraine::gpu::OperationShare;

/// Formats bytes with decimal units and three digits.
pub fn bytes(count: u64) -> String {
    let (unit, name) = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")]
        .into_iter()
        .find(|(unit, _)| count >= *unit)
        .unwrap_or((1, "B"));
    let value = count as f64 / unit as f64;
    let digits = if unit == 1 || value >= 100.0 { 0 } else { 1 + usize::from(value < 10.0) };
    format!("{value:.digits$} {name}")
}

/// True if standard output is a terminal and `NO_COLOR` is not set (no-color.org).
pub fn colored() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Formats a path for a shell command, with quotes where the shell needs them.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "-_./\\:@+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
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

/// Parses `12GB`, `500MB`, `8GiB` or plain bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("`{unit}` is no unit of memory; write for example 12GB, 500MB or 8GiB")),
    };
    let number: f64 = number.parse().map_err(|_| "write a number and a unit, for example 12GB".to_owned())?;
    Ok((number * factor) as u64)
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
    fn memory_sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("12GB"), Ok(12_000_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert!(parse_bytes("12 parsecs").is_err() && parse_bytes("GB").is_err());
    }
}
