//! The functions that chat templates call and the way values are printed, as in Python, for which templates are written.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::sync::Arc;

use chrono::NaiveDateTime;
use minijinja::value::{Kwargs, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};

/// Bytes that one rendering may print: many times the longest context. Without a limit a hostile template could fill the memory.
const MAX_PRINTED: usize = 64 << 20;
/// Largest number of spaces for one level of indentation.
const MAX_INDENT: usize = 1000;
/// Deepest value that is printed. Python itself stops at about a thousand.
const MAX_DEPTH: usize = 500;

thread_local! {
    /// Bytes printed so far by the rendering on this thread, including text that is kept in variables.
    static PRINTED: Cell<usize> = const { Cell::new(0) };
}

/// Resets the count of printed bytes.
pub(super) fn begin_rendering() {
    PRINTED.set(0);
}

fn refused<T>(problem: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, problem))
}

/// Adds to the count of printed bytes and fails beyond the limit.
fn count_printed(bytes: usize) -> Result<(), Error> {
    PRINTED.set(PRINTED.get().saturating_add(bytes));
    match PRINTED.get() <= MAX_PRINTED {
        true => Ok(()),
        false => refused(format!("prints more than {} MiB", MAX_PRINTED >> 20)),
    }
}

/// Python's None in the data that a template sees. Looping over it is an error, as in Python; minijinja's own none counts as an
/// empty list.
#[derive(Debug)]
struct PythonNone;

impl Object for PythonNone {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        false
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("None")
    }
}

/// True for both forms of None.
fn is_none(value: &Value) -> bool {
    value.is_none() || value.downcast_object_ref::<PythonNone>().is_some()
}

/// A JSON value as templates see it.
pub(super) fn template_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::from_object(PythonNone),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(template_value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), template_value(value))))
        }
    }
}

/// Lets `strftime_now` write `moment`, or where there is none the local time of the call.
pub(super) fn set_moment(environment: &mut Environment<'static>, moment: Option<NaiveDateTime>) {
    environment.add_function("strftime_now", move |format: &str| strftime(format, moment.unwrap_or_else(local_now)));
}

/// The date and time of this moment where the program runs, as Python's `datetime.now()` gives it.
pub(super) fn local_now() -> NaiveDateTime {
    #[cfg(not(target_arch = "wasm32"))]
    return chrono::Local::now().naive_local();
    #[cfg(target_arch = "wasm32")]
    {
        let now = js_sys::Date::new_0();
        let seconds = now.get_time() / 1000.0 - 60.0 * now.get_timezone_offset();
        chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default().naive_utc()
    }
}

/// Adds `raise_exception` and `tojson`, and prints values as Python's `str`.
pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    set_moment(environment, None);
    environment.add_test("none", is_none);
    environment.add_filter("tojson", to_json);
    environment.add_filter("indent", indent);
    // These filters create as many parts as a template asks for, and no model's template uses them.
    environment.remove_filter("batch");
    environment.remove_filter("slice");
    environment.add_filter("string", python_text);
    environment.set_formatter(|output: &mut Output, _: &mut State, value: &Value| {
        let text = match value.as_str() {
            Some(text) => text,
            None => &python_text(value)?,
        };
        count_printed(text.len())?;
        Ok(output.write_str(text)?)
    });
}

/// Python's `str(value)`.
fn python_text(value: &Value) -> Result<String, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => Ok(text.to_owned()),
        (ValueKind::Undefined, _) => Ok(String::new()),
        _ => {
            let mut out = String::new();
            python_repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// Fails for values that nest too deeply to be printed.
fn check_depth(depth: usize) -> Result<(), Error> {
    match depth <= MAX_DEPTH {
        true => Ok(()),
        false => refused(format!("nests deeper than {MAX_DEPTH} values")),
    }
}

/// Adds Python's `repr(value)` to `out`. The value lies `depth` values deep.
fn python_repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        _ if is_none(value) => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => out.push_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Number => out.push_str(&number_text(value)),
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                python_repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                python_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                python_repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A number as Python and JSON write it.
fn number_text(value: &Value) -> String {
    match value.is_integer() {
        true => value.to_string(),
        false => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), python_float),
    }
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The shortest digits that give `number` back, with an exponent from 1e16 on and below 1e-4.
fn python_float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "nan".into()
        } else if number > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// Jinja's `indent`: by default indents every line except the first and empty lines.
fn indent(text: &str, width: Option<Value>, first: Option<bool>, options: Kwargs) -> Result<String, Error> {
    let blanks = match options.get::<Option<Value>>("width")?.or(width) {
        None => " ".repeat(4),
        Some(own) if own.as_str().is_some() => own.to_string(),
        Some(width) => match usize::try_from(width)? {
            width if width <= MAX_INDENT => " ".repeat(width),
            width => return refused(format!("an indent of {width} is more than {MAX_INDENT} blanks")),
        },
    };
    let first = options.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = options.get::<Option<bool>>("blank")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if (at > 0 || first) && (blank || at == 0 || !line.is_empty()) {
            out.push_str(&blanks);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `json.dumps` with `ensure_ascii=False` unless asked otherwise: no escapes for HTML, a space after `,` and `:`.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let indent = match options.get::<Option<Value>>("indent")?.or(indent).filter(|indent| !indent.is_none()) {
        Some(indent) => Some(usize::try_from(indent)?),
        None => None,
    };
    let separators: Option<(String, String)> = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => None,
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
    };
    options.assert_all_used()?;
    let default_item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or((default_item.into(), ": ".into()));
    let mut writer = JsonWriter { out: String::new(), ascii, sort_keys, indent, item, key };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// `json.dumps(value, ensure_ascii=False)`; empty for a value that nests too deeply.
pub(super) fn json_text(value: &Value) -> String {
    let mut writer = JsonWriter {
        out: String::new(),
        ascii: false,
        sort_keys: false,
        indent: None,
        item: ", ".to_owned(),
        key: ": ".to_owned(),
    };
    match writer.value(value, 0) {
        Ok(()) => writer.out,
        Err(_) => String::new(),
    }
}

struct JsonWriter {
    out: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_depth(depth)?;
        match value.kind() {
            _ if is_none(value) => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Number => self.out.push_str(&number_text(value)),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut any = false;
                for element in value.try_iter()? {
                    self.separate(&mut any, depth + 1);
                    self.value(&element, depth + 1)?;
                }
                self.close(any, depth, ']');
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                let mut any = false;
                for key in keys {
                    self.separate(&mut any, depth + 1);
                    self.string(&key.to_string());
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.close(any, depth, '}');
            }
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} has no form in JSON"))),
        }
        Ok(())
    }

    fn separate(&mut self, any: &mut bool, depth: usize) {
        if std::mem::replace(any, true) {
            self.out.push_str(&self.item);
        }
        self.new_line(depth);
    }

    fn close(&mut self, any: bool, depth: usize, bracket: char) {
        if any {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(1024)));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Writes a moment as Python's `strftime` does. Directives that templates do not use stay as they are.
fn strftime(format: &str, moment: NaiveDateTime) -> String {
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        // Writing to a string cannot fail.
        let _ = match characters.next() {
            Some(directive @ ('Y' | 'y' | 'm' | 'd' | 'B' | 'b' | 'A' | 'a' | 'H' | 'I' | 'M' | 'S' | 'p')) => {
                write!(text, "{}", moment.format(&format!("%{directive}")))
            }
            Some('%') | None => write!(text, "%"),
            Some(other) => write!(text, "%{other}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let mut environment = Environment::new();
        register(&mut environment);
        let value = minijinja::value::Serde(
            serde_json::json!({"b": [1, 2.0, true, null], "a": "<\u{e9}'\"\n>", "e": {}, "l": []}),
        );
        environment.render_str(template, minijinja::context! { v => value, big => 1e16, small => 0.00001 }).unwrap()
    }

    #[test]
    fn texts_are_indented_as_in_jinja() {
        let render = |template: &str| {
            let mut environment = Environment::new();
            register(&mut environment);
            environment.render_str(template, minijinja::context! { text => "a\n\nb\n" })
        };
        assert_eq!(render("{{ text|indent }}").unwrap(), "a\n\n    b\n");
        assert_eq!(render("{{ text|indent(2, true) }}").unwrap(), "  a\n\n  b\n");
        assert_eq!(render("{{ text|indent(width='> ', first=true, blank=true) }}").unwrap(), "> a\n> \n> b\n> ");
        assert!(render("{{ text|indent(10 ** 9) }}").unwrap_err().to_string().contains("more than 1000 blanks"));
    }

    #[test]
    fn json_is_what_python_writes() {
        let compact = r#"{"b": [1, 2.0, true, null], "a": "<é'\"\n>", "e": {}, "l": []}"#;
        assert_eq!(render("{{ v | tojson }}"), compact);
        let indented = "{\n  \"b\": [\n    1,\n    2.0,\n    true,\n    null\n  ],\n  \"a\": \"<é'\\\"\\n>\",\n  \
                        \"e\": {},\n  \"l\": []\n}";
        assert_eq!(render("{{ v | tojson(indent=2) }}"), indented);
        let options = "{{ v | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}";
        assert_eq!(render(options), r#"{"a":"<\u00e9'\"\n>","b":[1,2.0,true,null],"e":{},"l":[]}"#);
        assert_eq!(render("{{ [big, small] | tojson }}"), "[1e+16, 1e-05]");
    }

    #[test]
    fn none_is_no_list_and_deep_values_are_refused() {
        let render = |template: &str| {
            let mut environment = Environment::new();
            register(&mut environment);
            let nothing = template_value(&serde_json::json!({"n": null, "l": [null]}));
            environment.render_str(template, minijinja::context! { d => nothing })
        };
        assert_eq!(
            render("{{ d }} {{ d.n is none }} {{ d.n or 'x' }} {{ d|tojson }}").unwrap(),
            "{'n': None, 'l': [None]} True x {\"n\": null, \"l\": [null]}"
        );
        assert!(render("{% for x in d.n %}{% endfor %}").is_err());
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(600) %}{% set ns.x = [ns.x] %}{% endfor %}";
        for print in ["{{ ns.x }}", "{{ ns.x|tojson }}", "{{ ns.x|string }}"] {
            let problem = render(&format!("{deep}{print}")).unwrap_err().to_string();
            assert!(problem.contains("nests deeper than 500 values"), "{problem}");
        }
    }

    #[test]
    fn values_print_as_in_python() {
        assert_eq!(render("{{ v }}"), r#"{'b': [1, 2.0, True, None], 'a': '<é\'"\n>', 'e': {}, 'l': []}"#);
        assert_eq!(
            render("{{ true }} {{ none }} {{ 1.5 }} {{ missing }}|{{ \"a'b\" }} {{ [\"a'b\"] }}"),
            "True None 1.5 |a'b [\"a'b\"]"
        );
        assert_eq!(render("{{ 'is ' ~ (none | string) }}"), "is None");
    }

    #[test]
    fn moments_are_written_as_by_strftime() {
        let format = "%d %B %Y|%b %a %A|%y-%m-%d %H:%M:%S|%I %p|%%|%q";
        let written = |format: &str, moment: &str| strftime(format, moment.parse().unwrap());
        assert_eq!(
            written(format, "1970-01-01T00:00:00"),
            "01 January 1970|Jan Thu Thursday|70-01-01 00:00:00|12 AM|%|%q"
        );
        assert_eq!(
            written(format, "2024-02-29T13:05:09"),
            "29 February 2024|Feb Thu Thursday|24-02-29 13:05:09|01 PM|%|%q"
        );
        assert_eq!(written("%Y-%m-%d", "2100-03-01T00:00:00"), "2100-03-01");
    }
}
