//! A row of the table of settings: the values that a setting may have, and whether a run may go on with another.

use crate::setting::Key;
use crate::{Error, Result};

/// TOML's integers end here, and run.toml must hold every setting.
const LARGEST: u64 = i64::MAX as u64;

/// Rule for a setting whose value differs from that of the checkpoint when a run resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnResume {
    /// It must not differ: the checkpoint's moments and its place in the data would mean nothing.
    Fixed,
    /// It may differ, and the rest of the run is then another than it would have been.
    Steering,
    /// It may differ: the setting changes no number of the run, or is checked by other means.
    Free,
}

/// The numbers that a setting may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Range {
    Positive,
    /// 0, which is off, or a positive number.
    NotNegative,
    /// From 0 to below 1.
    Share,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::Positive => value.is_finite() && value > 0.0,
            Self::NotNegative => value.is_finite() && value >= 0.0,
            Self::Share => (0.0..1.0).contains(&value),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Positive => "a positive number",
            Self::NotNegative => "0 or a positive number",
            Self::Share => "at least 0 and below 1",
        }
    }
}

#[derive(Debug)]
enum Values<S> {
    /// The type of the field alone says which values there are.
    Any,
    Count {
        least: u64,
        get: fn(&S) -> Option<u64>,
    },
    Number {
        range: Range,
        get: fn(&S) -> Option<f64>,
    },
}

/// One setting of the settings `S`.
#[derive(Debug)]
pub struct Setting<S> {
    /// Its key in a settings file.
    pub key: Key,
    /// Rule for a resumed run that has another value.
    pub on_resume: OnResume,
    values: Values<S>,
}

impl<S> Setting<S> {
    pub(super) const fn new(key: &'static str, on_resume: OnResume) -> Self {
        Self { key: Key(key), on_resume, values: Values::Any }
    }

    /// The setting is a whole number from `least`; None of `get` is the default.
    pub(super) const fn count(self, least: u64, get: fn(&S) -> Option<u64>) -> Self {
        Self { values: Values::Count { least, get }, ..self }
    }

    /// The setting is a number in `range`; None of `get` is the default.
    pub(super) const fn number(self, range: Range, get: fn(&S) -> Option<f64>) -> Self {
        Self { values: Values::Number { range, get }, ..self }
    }

    /// # Errors
    /// A value out of its range.
    pub(super) fn check(&self, settings: &S) -> Result<()> {
        let key = self.key;
        let problem = match self.values {
            Values::Any => return Ok(()),
            Values::Count { least, get } => match get(settings) {
                Some(value) if value < least => format!("{key} is {value}; it must be at least {least}"),
                Some(value) if value > LARGEST => format!("{key} is {value}; it must be at most {LARGEST}"),
                _ => return Ok(()),
            },
            Values::Number { range, get } => match get(settings) {
                Some(value) if !range.holds(value) => format!("{key} is {value}; it must be {}", range.text()),
                _ => return Ok(()),
            },
        };
        Err(Error::setting(key, problem))
    }
}
