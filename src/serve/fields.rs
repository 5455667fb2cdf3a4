//! Reads the fields of a request. A field that is null counts as absent.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// The fields of a request.
pub struct Fields<'a>(&'a Map<String, Value>);

/// The beginning of a value, for a message.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl<'a> Fields<'a> {
    /// The fields of a JSON object.
    ///
    /// # Errors
    /// Another value.
    pub fn of(body: &'a Value) -> Result<Self, Refusal> {
        let other = || Refusal::invalid(format!("the body is {}, but must be a JSON object", shown(body)));
        body.as_object().map(Self).ok_or_else(other)
    }

    /// A field's value; `None` if it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let wrong = |value| Refusal::field(name, format!("is {}, but must be {wanted}", shown(value)));
        self.get(name).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    /// A text.
    ///
    /// # Errors
    /// Another value.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.read(name, "a string", Value::as_str)
    }

    /// True or false; false if it is absent.
    ///
    /// # Errors
    /// Another value.
    pub fn flag(&self, name: &str) -> Result<bool, Refusal> {
        Ok(self.read(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    /// A number.
    ///
    /// # Errors
    /// Another value, or a number beyond those of f32.
    pub fn number(&self, name: &str) -> Result<Option<f32>, Refusal> {
        self.read(name, "a number", |value| value.as_f64().map(|number| number as f32).filter(|n| n.is_finite()))
    }

    /// A whole number from 0 to `most`.
    ///
    /// # Errors
    /// Another value.
    pub fn count(&self, name: &str, most: u64) -> Result<Option<usize>, Refusal> {
        let wanted = match most {
            u64::MAX => "a whole number from 0 on".to_owned(),
            _ => format!("a whole number from 0 to {most}"),
        };
        let read = |value: &Value| value.as_u64().filter(|n| *n <= most).and_then(|n| usize::try_from(n).ok());
        self.read(name, &wanted, read)
    }

    /// A whole number, which may be negative.
    ///
    /// # Errors
    /// Another value.
    pub fn whole(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.read(name, "a whole number", |value| value.as_i64().or_else(|| value.as_u64().map(|n| n as i64)))
    }

    /// A JSON object.
    ///
    /// # Errors
    /// Another value.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, Refusal> {
        self.read(name, "an object", Value::as_object)
    }

    /// A JSON list.
    ///
    /// # Errors
    /// Another value.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>, Refusal> {
        self.read(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A text or a list of texts.
    ///
    /// # Errors
    /// Another value, or more than `most` texts.
    pub fn texts(&self, name: &str, most: usize) -> Result<Vec<String>, Refusal> {
        let owned = |value: &Value| value.as_str().map(str::to_owned);
        let read = |value: &Value| match value {
            Value::Array(list) => list.iter().map(owned).collect::<Option<Vec<_>>>().filter(|list| list.len() <= most),
            one => owned(one).map(|text| vec![text]),
        };
        let wanted = format!("a string or a list of at most {most} strings");
        Ok(self.read(name, &wanted, read)?.unwrap_or_default())
    }

    /// Refuses a field that asks for something that the server does not do, unless it has one of `harmless` values.
    ///
    /// # Errors
    /// The field has another value.
    pub fn refuse(&self, name: &str, harmless: &[Value], why: &str) -> Result<(), Refusal> {
        match self.get(name) {
            Some(value) if !harmless.contains(value) => {
                Err(Refusal::field(name, format!("is {}, but {why}", shown(value))))
            }
            _ => Ok(()),
        }
    }
}

/// A list of token ids.
pub fn token_ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}
