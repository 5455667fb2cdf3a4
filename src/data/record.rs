//! A record of a data set: fields with their values.

use serde_json::{Map, Value};

/// The fields of a record, in their order.
pub type Record = Map<String, Value>;

/// A value as JSON, cut after some 40 characters.
pub(super) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
