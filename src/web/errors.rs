//! Converts errors to JavaScript errors with a `kind`.

use js_sys::Reflect;
use wasm_bindgen::prelude::*;

use crate::Error;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/**
 * The error that every call here throws or rejects with. Where a text names a setting, it holds a placeholder, `⟨batch-size⟩` or with a value
 * `⟨method=qlora⟩`, so that a page can write its own label.
 */
export interface LoraineError extends Error {
    name: "LoraineError";
    kind: "no-adapter" | "gpu-lost" | "out-of-memory" | "gpu" | "file" | "setting" | "argument" | "busy" | "training" | "hub";
    /** The file that is wrong, where it is one. */
    path?: string;
    /** The JSON key or tensor that is wrong, where it is one. */
    field?: string;
    /** The line of the file that is wrong, from 1, where it is one. */
    line?: number;
    /** The setting that is wrong, where it is one. */
    key?: string;
    /** The message without path, field and line. */
    problem: string;
}
"#;

/// Makes the `LoraineError` that a page catches.
pub fn to_js(error: &Error) -> JsValue {
    let thrown = js_sys::Error::new(&error.to_string());
    thrown.set_name("LoraineError");
    let set = |key: &str, value: JsValue| {
        // Setting a property of a new object cannot fail.
        let _ = Reflect::set(&thrown, &key.into(), &value);
    };
    set("kind", error.kind().name().into());
    if let Error::File { path, .. } | Error::Line { path, .. } | Error::Field { path, .. } = error {
        set("path", path.display().to_string().into());
    }
    match error {
        Error::Field { field, .. } => set("field", field.into()),
        Error::Line { line, .. } => set("line", (*line as f64).into()),
        Error::Setting { key, .. } => set("key", (*key).into()),
        _ => {}
    }
    let problem = match error {
        Error::File { problem, .. } | Error::Field { problem, .. } | Error::Line { problem, .. } => problem.clone(),
        other => other.to_string(),
    };
    set("problem", problem.into());
    thrown.into()
}

/// Returns the text of an exception from a function of the page.
pub fn text(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => format!("{thrown:?}"),
    }
}
