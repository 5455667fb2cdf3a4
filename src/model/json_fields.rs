//! Checked access to the keys of one JSON object: every answer is a value in range or an error that names file and key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// One JSON object of a file. A key whose value is `null` counts as absent, as it does in transformers and PEFT.
pub(crate) struct JsonFields<'a> {
    path: &'a Path,
    /// Path of the object in the file, for messages: empty, or with a point at its end as in `rope_scaling.`.
    prefix: &'static str,
    object: &'a Map<String, Value>,
}

/// Parses a whole file whose top level must be an object.
pub(crate) fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::file(path, "must hold one JSON object")),
        Err(e) => Err(Error::file(path, format!("is not valid JSON: {e}"))),
    }
}

impl<'a> JsonFields<'a> {
    pub(crate) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: "", object }
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
        Error::field(self.path, format!("{}{key}", self.prefix), problem)
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
