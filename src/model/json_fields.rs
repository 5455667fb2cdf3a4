//! Checked access to the keys of one JSON object: every answer is a value in range or an error that names file and key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, files};

/// One JSON object of a file. A key whose value is `null` counts as absent, as it does in transformers and PEFT.
pub(crate) struct JsonFields<'a> {
    path: &'a Path,
    /// Path of the object in the file, for messages: empty, or with a point at its end as in `rope_scaling.`.
    prefix: &'static str,
    object: &'a Map<String, Value>,
}

/// Parses a whole file whose top level must be an object.
pub(crate) fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    let text = text.trim_start_matches('\u{feff}');
    let parsed =
        serde_json::from_str(text).or_else(|e| serde_json::from_str(&without_special_floats(text)).map_err(|_| e));
    match parsed {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::file(path, "must hold one JSON object")),
        Err(_) if files::is_lfs_pointer(text.as_bytes()) => Err(Error::lfs_pointer(path)),
        Err(e) => Err(Error::file(path, format!("is not valid JSON: {e}"))),
    }
}

/// Stands before the name of a number that JSON does not have, in a string in its place.
const SPECIAL: char = '\u{f8ff}';

/// Python writes NaN, Infinity and -Infinity into JSON. Each becomes a string, which is refused only where a number is wanted.
fn without_special_floats(text: &str) -> String {
    let mut written = String::with_capacity(text.len() + 16);
    let (mut in_string, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let name = ["NaN", "Infinity", "-Infinity"].into_iter().find(|name| !in_string && rest.starts_with(name));
        if let Some(name) = name {
            written.extend(['"', SPECIAL]);
            written += name;
            written.push('"');
            rest = &rest[name.len()..];
            continue;
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
        written.push(c);
        rest = &rest[c.len_utf8()..];
    }
    written
}

/// The text of an object that [`parse_object`] has read, with the numbers that JSON does not have as Python writes them.
pub(crate) fn object_text(object: &Map<String, Value>) -> String {
    let text = format!("{:#}\n", Value::Object(object.clone()));
    ["NaN", "Infinity", "-Infinity"]
        .into_iter()
        .fold(text, |text, name| text.replace(&format!("\"{SPECIAL}{name}\""), name))
}

impl<'a> JsonFields<'a> {
    pub(crate) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self::below(path, "", object)
    }

    /// An object inside the file's, with `prefix` (its key and a point) put before the keys in messages.
    pub(crate) fn below(path: &'a Path, prefix: &'static str, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix, object }
    }

    /// The object under `key`, with `prefix` (the key and a point) put before the keys in messages.
    pub(crate) fn object(&self, key: &'static str, prefix: &'static str) -> Result<Option<Self>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self { path: self.path, prefix, object })),
            Some(other) => Err(self.error(key, format!("is {other}, but must be an object or null"))),
        }
    }

    pub(crate) fn error(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::field(self.path, format!("{}{key}", self.prefix), problem.to_string().replace(SPECIAL, ""))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.object.iter()
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// A whole number in `1..=max`.
    pub(crate) fn count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let in_range = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        in_range
            .map(Some)
            .ok_or_else(|| self.error(key, format!("is {value}, but must be a whole number in 1..={max}")))
    }

    pub(crate) fn required_count(&self, key: &str, max: usize) -> Result<usize> {
        self.count(key, max)?.ok_or_else(|| self.error(key, "is missing; it must be a whole number"))
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.error(key, format!("is {value}, but must be a number above 0")))
    }

    pub(crate) fn required_positive(&self, key: &str) -> Result<f64> {
        self.positive(key)?.ok_or_else(|| self.error(key, "is missing; it must be a number above 0"))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.error(key, format!("is {other}, but must be true or false"))),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, format!("is {other}, but must be a string"))),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        texts.map(Some).ok_or_else(|| self.error(key, "must be a list of strings"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_have_are_read_as_python_writes_them() {
        let text = r#"{"a": Infinity, "b": [-Infinity, NaN, 1.5], "c": "NaN \" Infinity", "d": {"e": "x\\"}}"#;
        let object = parse_object(Path::new("config.json"), text).unwrap();
        assert_eq!((&object["b"][2], &object["c"]), (&Value::from(1.5), &Value::from("NaN \" Infinity")));
        let fields = JsonFields::new(Path::new("config.json"), &object);
        let message = fields.positive("a").unwrap_err().to_string();
        assert_eq!(message, "config.json: `a`: is \"Infinity\", but must be a number above 0");
        let written = object_text(&object);
        assert!(
            written.contains("\"a\": Infinity,")
                && written.contains("    NaN,")
                && written.contains("\"NaN \\\" Infinity\"")
        );
        for wrong in ["{\"a\": Inf}", "{\"a\": NaN", "NaN"] {
            assert!(parse_object(Path::new("config.json"), wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named() {
        let text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n";
        let message = parse_object(Path::new("config.json"), text).unwrap_err().to_string();
        assert!(message.contains("config.json: is a Git LFS pointer") && message.contains("git lfs pull"), "{message}");
    }
}
