//! Errors for programs: with `--json`, an error is an event on standard output besides the text on standard error.

use loraine::Error;
use serde_json::{Value, json};

/// The event of an error with its kind, and with the file, field, line or setting where the library knows it. `message` is what the
/// terminal shows.
pub fn of(error: &anyhow::Error, message: &str) -> Value {
    let known = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let kind = known.map_or("other", |known| known.kind().name());
    let mut event = json!({ "event": "error", "kind": kind, "message": message });
    match known {
        Some(Error::File { path, .. }) => event["path"] = json!(path),
        Some(Error::Field { path, field, .. }) => (event["path"], event["field"]) = (json!(path), json!(field)),
        Some(Error::Line { path, line, .. }) => (event["path"], event["line"]) = (json!(path), json!(line)),
        Some(Error::Setting { key, .. }) => event["setting"] = json!(key),
        _ => {}
    }
    event
}

/// The event of a command line that cannot be understood.
pub fn of_usage(error: &clap::Error) -> Value {
    let text = error.to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    json!({ "event": "error", "kind": "usage", "message": message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_kind_and_place_under_its_contexts() {
        let error = anyhow::Error::new(Error::line("data.jsonl", 7, "is empty")).context("while reading");
        let event = of(&error, "shown");
        let want = json!({ "event": "error", "kind": "file", "message": "shown", "path": "data.jsonl", "line": 7 });
        assert_eq!(event, want);
        assert_eq!(of(&anyhow::anyhow!("no"), "no")["kind"], "other");
    }
}
